package checkpoint

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Every socket is listed, whatever sockets with names are there too.
func TestUnixSockets(t *testing.T) {
	dir := t.TempDir()
	for length := 1; length <= 9; length++ {
		l, err := net.Listen("unix", filepath.Join(dir, strings.Repeat("n", length)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	type pair struct{ near, far uint32 }
	var pairs []pair
	for range 20 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var inodes [2]uint32
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "pair")
			defer f.Close()
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			inodes[i] = uint32(st.Ino)
		}
		if _, err := unix.Write(fds[0], []byte("unread")); err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pair{inodes[0], inodes[1]})
	}
	sockets, err := unixSockets()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[uint32]diagSocket{}
	for _, s := range sockets {
		listed[s.inode] = s
	}
	for _, p := range pairs {
		if s := listed[p.near]; !s.connected || s.peer != p.far || s.unread == 0 {
			t.Errorf("socket %d with peer %d and something unread is listed as %+v", p.near, p.far, s)
		}
		if s := listed[p.far]; !s.connected || s.peer != p.near || s.unread != 0 {
			t.Errorf("socket %d with peer %d is listed as %+v", p.far, p.near, s)
		}
	}
}
