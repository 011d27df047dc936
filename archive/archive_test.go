package archive

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"filippo.io/age"

	"podd/pod"
)

// authority certifies signers.
type authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
}

var testTime = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func certificate(t testing.TB, name string, parent *authority) *authority {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(mathrand.Int64()), Subject: pkix.Name{CommonName: name},
		NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	issuer, signer := template, private
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{private, cert}
}

func (a *authority) signer() Signer {
	return Signer{Key: a.key, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})}
}

// verify is what the holder of the authority's certificate does with a chain.
func (a *authority) verify(chain []byte, at time.Time) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return leaf, err
}

// file is a written file and what is needed to read it.
type file struct {
	data      []byte
	authority *authority
	host      *authority
	identity  *age.X25519Identity
	members   map[string]string
}

func testHeader() Header {
	return Header{
		ID: "4f1c09", Pod: "alice", Epoch: 3, Host: "a", CreatedAt: testTime, Kernel: "6.18.0", CPU: "A processor", CPUFlags: []string{"sse", "avx"},
		CRIU: 40201, Version: "v1", Image: "debian", ImageDigest: "sha256:ab",
	}
}

func source(t testing.TB, name, content string) Source {
	t.Helper()
	s, err := Measure(name, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newFile(t testing.TB) *file {
	t.Helper()
	ca := certificate(t, "authority", nil)
	f := &file{authority: ca, host: certificate(t, "a.host.podd", ca)}
	var err error
	if f.identity, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 300_000)
	rand.Read(random)
	f.members = map[string]string{"spec": `{"env":["TOKEN=marker-of-a-secret"]}`, "files": "", "memory": string(random), "images": strings.Repeat("x", 1<<20)}
	var sources []Source
	for _, name := range []string{"spec", "files", "memory", "images"} {
		sources = append(sources, source(t, name, f.members[name]))
	}
	header := testHeader()
	header.Recipients = []string{f.identity.Recipient().String()}
	var buffer bytes.Buffer
	if err := Write(&buffer, header, sources, f.host.signer(), f.identity.Recipient()); err != nil {
		t.Fatal(err)
	}
	f.data = buffer.Bytes()
	return f
}

// read reads a file as a restore does, and returns the members.
func (f *file) read(data []byte) (map[string]string, error) {
	r := bytes.NewReader(data)
	e, err := ReadEnvelope(r)
	if err != nil {
		return nil, err
	}
	if err := e.Verify(f.authority.verify); err != nil {
		return nil, err
	}
	members, err := e.Open(iotest.HalfReader(r), f.identity)
	if err != nil {
		return nil, err
	}
	defer members.Close()
	got := map[string]string{}
	for {
		m, content, err := members.Next()
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(content)
		if err != nil {
			return nil, err
		}
		got[m.Name] = string(text)
	}
}

func TestRoundTrip(t *testing.T) {
	f := newFile(t)
	got, err := f.read(f.data)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range f.members {
		if got[name] != want {
			t.Errorf("member %s has %d bytes, not the %d that were written", name, len(got[name]), len(want))
		}
	}
	e, err := ReadEnvelope(bytes.NewReader(f.data))
	if err != nil {
		t.Fatal(err)
	}
	if e.Header.Pod != "alice" || e.Header.Epoch != 3 || len(e.Header.Members) != 4 || e.Header.Members[2].Size != 300_000 {
		t.Errorf("the header is %+v", e.Header)
	}
	if body := int64(len(f.data) - len(e.Bytes())); body > e.Header.MaxBody() {
		t.Errorf("the body has %d bytes, more than %d", body, e.Header.MaxBody())
	}
	if err := e.Check(bytes.NewReader(f.data[len(e.Bytes()):]), f.identity); err != nil {
		t.Error(err)
	}
	if bytes.Contains(f.data, []byte("marker-of-a-secret")) {
		t.Error("a secret is in the clear")
	}
}

// Whatever byte of a file is changed, and wherever it is cut, it is refused.
func TestTampering(t *testing.T) {
	f := newFile(t)
	e, err := ReadEnvelope(bytes.NewReader(f.data))
	if err != nil {
		t.Fatal(err)
	}
	clear := len(e.Bytes())
	places := make([]int, 0, clear+1000)
	for i := range clear {
		places = append(places, i)
	}
	for i := clear; i < min(clear+400, len(f.data)); i++ { // age's own header
		places = append(places, i)
	}
	for range 200 {
		places = append(places, clear+mathrand.IntN(len(f.data)-clear))
	}
	places = append(places, len(f.data)-1)
	for _, at := range places {
		damaged := slices.Clone(f.data)
		damaged[at] ^= 1 << mathrand.IntN(8)
		got, err := f.read(damaged)
		if err == nil {
			t.Fatalf("a file with byte %d changed is taken (the clear part has %d bytes): %v", at, clear, got["spec"])
		}
		if !errors.Is(err, pod.ErrInvalid) && !errors.Is(err, pod.ErrUntrusted) && !errors.Is(err, ErrRecipient) {
			t.Errorf("byte %d changed: %v, which does not say that the file is to blame", at, err)
		}
		if _, err := f.read(f.data[:at]); err == nil {
			t.Fatalf("a file cut off at byte %d is taken", at)
		}
	}
	for _, more := range []string{"x", string(f.data)} {
		if _, err := f.read(append(slices.Clone(f.data), more...)); err == nil {
			t.Error("a file with something behind its end is taken")
		}
	}
}

func TestWrongSigner(t *testing.T) {
	f := newFile(t)
	other := newFile(t)
	e, err := ReadEnvelope(bytes.NewReader(f.data))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(other.authority.verify); !errors.Is(err, ErrSignature) {
		t.Errorf("another cluster's file: %v", err)
	}
	// An expired certificate does not sign for the time after.
	header := testHeader()
	header.CreatedAt = testTime.Add(2 * time.Hour)
	if err := f.rewrite(t, header, f.host.signer(), "spec"); !errors.Is(err, ErrSignature) {
		t.Errorf("a file that was signed after the certificate's end: %v", err)
	}
	// Another key under the host's certificate.
	if err := f.rewrite(t, testHeader(), Signer{Key: other.host.key, Chain: f.host.signer().Chain}, "spec"); !errors.Is(err, ErrSignature) {
		t.Errorf("a file signed with another key: %v", err)
	}
	// A valid envelope around another file's body.
	mixed := append(slices.Clone(e.Bytes()), other.data[len(e.Bytes()):]...)
	if _, err := f.read(mixed); err == nil {
		t.Error("an envelope with another body is taken")
	}
}

// rewrite reads a file that was written with this header.
func (f *file) rewrite(t *testing.T, header Header, signer Signer, content string) error {
	t.Helper()
	var buffer bytes.Buffer
	if err := Write(&buffer, header, []Source{source(t, "spec", content)}, signer, f.identity.Recipient()); err != nil {
		t.Fatal(err)
	}
	_, err := f.read(buffer.Bytes())
	return err
}

// A body that is encrypted correctly but has not what was signed is refused:
// anybody can encrypt to the cluster.
func TestForgedBody(t *testing.T) {
	f := newFile(t)
	a, b := source(t, "a", "first"), source(t, "b", "other")
	header := testHeader()
	header.Members = []Member{a.Member, b.Member}
	clear, err := seal(header, f.host.signer())
	if err != nil {
		t.Fatal(err)
	}
	for what, sources := range map[string][]Source{
		"swapped":   {b, a},
		"repeated":  {a, a},
		"too short": {a},
		"too long":  {a, b, a},
		"empty":     {},
	} {
		buffer := bytes.NewBuffer(slices.Clone(clear))
		if err := writeBody(buffer, sources, []age.Recipient{f.identity.Recipient()}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.read(buffer.Bytes()); !errors.Is(err, ErrDigest) && !errors.Is(err, ErrFormat) {
			t.Errorf("members %s: %v", what, err)
		}
	}
}

func TestOtherVersion(t *testing.T) {
	f := newFile(t)
	f.data[len(magic)] = version + 1
	if _, err := f.read(f.data); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
}

func TestReseal(t *testing.T) {
	f := newFile(t)
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(f.data)
	e, err := ReadEnvelope(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(bytes.NewReader(f.data[len(e.Bytes()):]), other); !errors.Is(err, ErrRecipient) {
		t.Errorf("opened with another key: %v", err)
	}
	recipients, err := Recipients(other.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	resealed := bytes.NewBuffer(slices.Clone(e.Bytes()))
	if err := Reseal(resealed, r, []age.Identity{f.identity}, recipients...); err != nil {
		t.Fatal(err)
	}
	f.identity = other
	got, err := f.read(resealed.Bytes())
	if err != nil || got["memory"] != f.members["memory"] {
		t.Errorf("a file for another recipient can't be read: %v", err)
	}
}

func TestHeaderBounds(t *testing.T) {
	signer := certificate(t, "a", nil).signer()
	for what, change := range map[string]func(*Header){
		"id":         func(h *Header) { h.ID = "A/b" },
		"pod":        func(h *Header) { h.Pod = "../x" },
		"host":       func(h *Header) { h.Host = "" },
		"epoch":      func(h *Header) { h.Epoch = 0 },
		"time":       func(h *Header) { h.CreatedAt = time.Time{} },
		"escape":     func(h *Header) { h.Kernel = "\x1b[2J" },
		"long":       func(h *Header) { h.Image = strings.Repeat("x", maxText+1) },
		"flags":      func(h *Header) { h.CPUFlags = make([]string, maxFlags+1) },
		"no members": func(h *Header) { h.Members = nil },
		"name":       func(h *Header) { h.Members[0].Name = "../spec" },
		"twice":      func(h *Header) { h.Members = append(h.Members, h.Members[0]) },
		"negative":   func(h *Header) { h.Members[0].Size = -1 },
		"overflow":   func(h *Header) { h.Members[0].Size = maxBytes; h.Members[1].Size = maxBytes },
		"digest":     func(h *Header) { h.Members[0].SHA256 = "00" },
	} {
		h := testHeader()
		h.Members = []Member{source(t, "spec", "x").Member, source(t, "memory", "y").Member}
		change(&h)
		if _, err := seal(h, signer); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, data := range map[string]string{
		"unknown field": `{"pod":"a","more":1}`,
		"two":           `{} {}`,
		"nothing":       ``,
		"an array":      `[]`,
	} {
		if _, err := decodeHeader([]byte(data)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A huge size that is only announced takes no memory.
func TestAnnouncedSizes(t *testing.T) {
	for _, size := range []uint32{0, maxHeader + 1, 1 << 31} {
		data := binary.BigEndian.AppendUint32(append([]byte(magic), version), size)
		if _, err := ReadEnvelope(bytes.NewReader(data)); !errors.Is(err, ErrFormat) {
			t.Errorf("a header of %d bytes: %v", size, err)
		}
	}
}

func TestChangedSource(t *testing.T) {
	f := newFile(t)
	s := source(t, "spec", "before")
	s.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("later!")), nil }
	if err := Write(io.Discard, testHeader(), []Source{s}, f.host.signer(), f.identity.Recipient()); err == nil {
		t.Error("a member that changed is written")
	}
	if err := Write(io.Discard, testHeader(), []Source{s}, f.host.signer()); err == nil {
		t.Error("a file to nobody is written")
	}
}

func ExampleHeader_MaxBody() {
	h := Header{Members: []Member{{Name: "memory", Size: 1 << 30}}}
	fmt.Println(h.MaxBody() < 1<<30+3<<20)
	// Output: true
}
