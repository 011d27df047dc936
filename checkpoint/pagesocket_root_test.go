//go:build root

package checkpoint

import (
	"errors"
	"io"
	"testing"
)

func TestPageSocket(t *testing.T) {
	for _, rung := range []bool{false, true} {
		tryPageSocket(t, rung)
	}
}

func tryPageSocket(t *testing.T, rung bool) {
	ours, theirs, err := newPageSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours.rung = rung
	b := make([]byte, 16)
	read := make(chan error)
	go func() {
		n, err := ours.Read(b)
		if err == nil && string(b[:n]) != "pages" {
			err = errors.New("something else came: " + string(b[:n]))
		}
		read <- err
	}()
	if _, err := theirs.WriteString("pages"); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.bell.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	// More than a socket usually takes does not wait for a reader.
	if _, err := theirs.Write(make([]byte, pageSocketBuffer)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, ours, pageSocketBuffer); err != nil {
		t.Fatal(n, err)
	}
	if _, err := ours.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	if n, err := theirs.Read(b); n != 1 || b[0] != 7 || err != nil {
		t.Fatal(n, err)
	}

	// Who reads learns that it was closed, and so does CRIU.
	go func() {
		_, err := ours.Read(b)
		read <- err
	}()
	ours.Close()
	if <-read == nil {
		t.Error("something was read while it was closed")
	}
	if n, err := theirs.Read(b); n != 0 || err != io.EOF {
		t.Errorf("CRIU reads %d bytes, %v", n, err)
	}
	if ours.Close() == nil {
		t.Error("closed twice")
	}
}
