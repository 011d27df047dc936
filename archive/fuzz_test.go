package archive

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"filippo.io/age"

	"podd/pod"
)

// FuzzHeader feeds the clear part's decoder. What it takes must come out the
// same when it is written again.
func FuzzHeader(f *testing.F) {
	whole := newFile(f)
	e, err := ReadEnvelope(bytes.NewReader(whole.data))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Bytes())
	f.Add(e.Bytes()[:len(e.Bytes())-1])
	f.Add([]byte(magic + "\x01\x00\x00\x00\x02{}\x00\x00\x00\x01x"))
	f.Add([]byte(magic + "\x02"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ReadEnvelope(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, pod.ErrInvalid) {
				t.Fatalf("%v does not say that the file is to blame", err)
			}
			return
		}
		if !bytes.HasPrefix(data, e.Bytes()) {
			t.Fatal("the clear part is not what was read")
		}
		encoded, err := e.Header.encode()
		if err != nil {
			t.Fatalf("a header that was read can't be written: %v", err)
		}
		again, err := decodeHeader(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(twice, encoded) {
			t.Fatalf("%s becomes %s (%v)", encoded, twice, err)
		}
		if e.Header.MaxBody() < e.Header.Bytes() {
			t.Fatal("the bound of the body overflows")
		}
	})
}

// FuzzOpen feeds what comes out of the encryption: whoever knows the public key
// can make it say anything.
func FuzzOpen(f *testing.F) {
	whole := newFile(f)
	e, err := ReadEnvelope(bytes.NewReader(whole.data))
	if err != nil {
		f.Fatal(err)
	}
	small := source(f, "spec", "some content")
	e.Header.Members = []Member{small.Member}
	plain, err := age.Decrypt(bytes.NewReader(whole.data[len(e.Bytes()):]), whole.identity)
	if err != nil {
		f.Fatal(err)
	}
	compressed, err := io.ReadAll(io.LimitReader(plain, 1000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(compressed)
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x61\x00\x00some content\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var body bytes.Buffer
		w, err := age.Encrypt(&body, whole.identity.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := e.Open(&body, whole.identity)
		if err != nil {
			return
		}
		defer r.Close()
		_, content, err := r.Next()
		if err != nil {
			return
		}
		text, err := io.ReadAll(content)
		if int64(len(text)) > small.Size {
			t.Fatalf("a member of %d bytes gives %d", small.Size, len(text))
		}
		if err == nil && string(text) != "some content" {
			t.Fatalf("%q passes for the content", text)
		}
	})
}
