package netconn

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnixSocket passes files to itself by a socket whose path is longer than a socket's
// address can be.
func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := DialIn(t.Context(), "unixpacket", dir, "socket"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	l, err := ListenIn("unixpacket", dir, "socket")
	if err != nil {
		t.Fatal(err)
	}
	near, err := DialIn(t.Context(), "unixpacket", dir, "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	l.Close()
	if _, err := os.Lstat(filepath.Join(path, "socket")); err != nil {
		t.Error(err)
	}
	if peer, err := Peer(far); err != nil || int(peer.Pid) != os.Getpid() || int(peer.Uid) != os.Geteuid() {
		t.Errorf("%+v, %v", peer, err)
	}

	// pass sends so many descriptors of a pipe, and receives them.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pass := func(n int) []byte {
		t.Helper()
		fds := slices.Repeat([]int{int(w.Fd())}, n)
		if _, _, err := near.WriteMsgUnix([]byte("x"), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		oob := make([]byte, unix.CmsgSpace(4*n))
		_, oobn, _, _, err := far.ReadMsgUnix(make([]byte, 1), oob)
		if err != nil {
			t.Fatal(err)
		}
		return oob[:oobn]
	}
	file, err := PassedFile(pass(2), "pipe")
	if err != nil {
		t.Fatal(err)
	}
	other, err := Duplicate(file)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, f := range []*os.File{file, other} {
		if _, err := f.WriteString(f.Name()); err != nil {
			t.Error(err)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
		f.Close()
	}
	// All descriptors of the pipe's end are closed, or this would not end.
	if b, err := io.ReadAll(r); err != nil || string(b) != "pipepipe" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestNoDescriptor(t *testing.T) {
	if file, err := PassedFile(nil, "none"); file != nil || err != nil {
		t.Errorf("%v, %v", file, err)
	}
	if fds, err := Descriptors(unix.UnixCredentials(&unix.Ucred{})); err == nil {
		t.Errorf("%v", fds)
	}
}
