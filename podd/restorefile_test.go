package podd

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podd/archive"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

func TestOlderKernel(t *testing.T) {
	for _, test := range []struct {
		release, than string
		want          bool
	}{
		{"6.12.43+deb13-amd64", "6.18.0", true}, {"6.18.1", "6.18.44-fc", false}, {"6.18.0", "6.12.0", false},
		{"5.19.0", "6.1.0", true}, {"7.0.0", "6.18.0", false}, {"odd", "6.1.0", false}, {"6.1.0", "", false},
	} {
		if got := older(test.release, test.than); got != test.want {
			t.Errorf("%s is older than %s: %v", test.release, test.than, got)
		}
	}
}

func TestEmptyDir(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]bool{dir: false, filepath.Join(dir, "empty"): true, filepath.Join(dir, "missing"): true} {
		if err := os.MkdirAll(filepath.Join(dir, "empty"), 0o700); err != nil {
			t.Fatal(err)
		}
		if got, err := emptyDir(path); err != nil || got != want {
			t.Errorf("%s is empty: %v, %v", path, got, err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := emptyDir(file); err == nil {
		t.Error("a file passes for a directory")
	}
}

func TestConfirmations(t *testing.T) {
	var c confirmations
	if c.confirm("pod/1") {
		t.Error("what nobody waits for is confirmed")
	}
	confirmed, forget := c.expect("pod/1")
	if c.confirm("pod/2") || c.confirm("other/1") {
		t.Error("another one is confirmed")
	}
	if !c.confirm("pod/1") {
		t.Error("it can't be confirmed")
	}
	<-confirmed
	if c.confirm("pod/1") {
		t.Error("it is confirmed twice")
	}
	_, forget2 := c.expect("pod/3")
	forget()
	forget2()
	if c.confirm("pod/3") {
		t.Error("what was forgotten is confirmed")
	}
}

func TestStillMember(t *testing.T) {
	joined := time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)
	host := trust.Identity{Kind: trust.KindHost, Name: "a"}
	leaf := func(serial int64, begin time.Time) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: begin}
	}
	first := leaf(1, joined.Add(-24*time.Hour))
	members := []directory.Member{
		{Kind: trust.KindUser, Name: "b", JoinedAt: joined},
		{Kind: trust.KindHost, Name: "a", JoinedAt: joined, Certificates: []directory.Certificate{{Serial: trust.Serial(first)}}},
	}
	for what, test := range map[string]struct {
		signer trust.Identity
		leaf   *x509.Certificate
		want   bool
	}{
		"a renewed certificate":             {host, leaf(2, joined.Add(48*time.Hour)), true},
		"the one it has joined with":        {host, leaf(3, joined.Add(-5*time.Minute)), true},
		"one from before, that is known":    {host, first, true},
		"one from before it was turned out": {host, leaf(4, joined.Add(-25*time.Hour)), false},
		"a host that was turned out":        {trust.Identity{Kind: trust.KindHost, Name: "c"}, leaf(5, joined), false},
		"a user of the name":                {trust.Identity{Kind: trust.KindHost, Name: "b"}, leaf(6, joined), false},
	} {
		err := stillMember(members, test.signer, test.leaf)
		if (err == nil) != test.want || err != nil && !errors.Is(err, pod.ErrUntrusted) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// goodManifest is a description of a pod and the header it belongs to.
func goodManifest(t testing.TB) ([]byte, *archive.Header) {
	t.Helper()
	data, err := json.Marshal(manifest{
		Salt: []byte("salt"), Spec: pod.Spec{Name: "alice", Image: "host", Command: []string{"sh"}},
		Virtual: netip.MustParseAddr("100.64.0.2"), Public: netip.MustParseAddr("198.18.0.2"), Epoch: 3,
		CreatedAt:   time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC),
		MappedFiles: []mappedFile{{Path: "/bin/sh", Size: 1, Digest: []byte("digest")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data, &archive.Header{Pod: "alice", Epoch: 3}
}

func TestReadManifest(t *testing.T) {
	data, header := goodManifest(t)
	if m, err := readManifest(bytes.NewReader(data), header); err != nil || m.Spec.Name != "alice" || m.MappedFiles[0].Size != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	for what, text := range map[string]string{
		"nothing":     "",
		"no JSON":     "{",
		"other name":  strings.Replace(string(data), "alice", "bob", 1),
		"bad name":    strings.Replace(string(data), "alice", "../x", 1),
		"other epoch": strings.Replace(string(data), `"epoch":3`, `"epoch":4`, 1),
		"no address":  strings.Replace(string(data), "100.64.0.2", "::1", 1),
		"volume at /": strings.Replace(string(data), `"image"`, `"volumes":[{"source":"/x","destination":"/","policy":"move"}],"image"`, 1),
		"too large":   strings.Repeat(" ", maxManifest) + string(data),
	} {
		if _, err := readManifest(strings.NewReader(text), header); !errors.Is(err, archive.ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	data, header := goodManifest(f)
	f.Add(data)
	f.Add([]byte(`{"spec":{"name":"alice"}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readManifest(bytes.NewReader(data), header)
		if err != nil {
			if !errors.Is(err, pod.ErrInvalid) {
				t.Errorf("%v does not say that the file is to blame", err)
			}
			return
		}
		if m.Spec.Name != header.Pod || m.Epoch != header.Epoch || m.Spec.Validate() != nil {
			t.Errorf("%+v passes", m)
		}
	})
}
