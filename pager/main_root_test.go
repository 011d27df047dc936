//go:build root

package pager

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
	"podd/pagesync"
)

var podProgram string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "pager" {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "poddtest-pager-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	podProgram = filepath.Join(dir, "pod")
	if out, err := exec.Command("cc", "-static", "-O2", "-Wall", "-Wextra", "-pthread", "-o", podProgram, "testdata/pod.c").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the pod: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// pod is a program whose memory is missing.
type pod struct {
	cmd     *exec.Cmd
	pid     int // as the pager knows it
	conn    *net.UnixConn
	uffd    *os.File
	regions []pagesync.Region
	stderr  *os.File
}

type podOptions struct {
	seed                                     uint64
	pid, regions, pages, ops, threads, forks int
	env                                      []string
	clone                                    uintptr
}

func startPod(t testing.TB, o podOptions) *pod {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "pod")
	mine := os.NewFile(uintptr(pair[0]), "pod")
	c, err := net.FileConn(mine)
	if err != nil {
		t.Fatal(err)
	}
	mine.Close()
	stderr, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{pid: o.pid, conn: c.(*net.UnixConn), stderr: stderr}
	p.cmd = exec.Command(podProgram, strconv.FormatUint(o.seed, 10), strconv.Itoa(o.pid), strconv.Itoa(o.regions), strconv.Itoa(o.pages),
		strconv.Itoa(o.ops), strconv.Itoa(o.threads), strconv.Itoa(o.forks))
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.Stderr = stderr
	p.cmd.Env = append(os.Environ(), o.env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: o.clone}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		p.cmd.Wait()
		p.conn.Close()
		if p.uffd != nil {
			p.uffd.Close()
		}
	})
	b, oob := make([]byte, 4096), make([]byte, 64)
	p.conn.SetDeadline(time.Now().Add(time.Minute))
	n, oobn, _, _, err := p.conn.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatalf("%v: %s", err, p.said())
	}
	fds, err := netconn.Descriptors(oob[:oobn])
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors: %v, %v", fds, err)
	}
	p.uffd = os.NewFile(uintptr(fds[0]), "userfaultfd")
	for i := 0; i < n; i += 16 {
		p.regions = append(p.regions, pagesync.Region{PID: o.pid, Start: binary.NativeEndian.Uint64(b[i:]), End: binary.NativeEndian.Uint64(b[i+8:])})
	}
	slices.SortFunc(p.regions, func(a, b pagesync.Region) int { return cmp.Compare(a.Start, b.Start) })
	return p
}

func (p *pod) said() string {
	b, _ := os.ReadFile(p.stderr.Name())
	return string(b)
}

// start lets the program begin.
func (p *pod) start(t testing.TB) {
	t.Helper()
	if _, err := p.conn.Write([]byte("g")); err != nil {
		t.Fatal(err)
	}
}

// finish waits until the program has asserted all it has to.
func (p *pod) finish(t testing.TB, limit time.Duration) {
	t.Helper()
	p.conn.SetDeadline(time.Now().Add(limit))
	var b [1]byte
	if n, err := p.conn.Read(b[:]); err != nil || n != 1 {
		t.Fatalf("the pod says nothing: %v: %s", err, p.said())
	}
	p.conn.Write([]byte("e"))
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("the pod failed: %v: %s", err, p.said())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// tmpfs makes a directory in memory.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("poddtest-pager", dir, "tmpfs", 0, "mode=0700"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func (s *testSource) options(t testing.TB, freezer string) Options {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	return Options{
		Dir: tmpfs(t), Executable: executable, FreezerDir: freezer, StateDir: s.stateDir,
		Source: "source", Addresses: []string{s.listener.Addr().String()}, Path: "/podd-memory?move=m1", Log: testLog(t),
	}
}

func startPager(t testing.TB, o Options) *Pager {
	t.Helper()
	p, err := Start(t.Context(), o)
	must(t, err)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(o.Dir, logName))
			t.Logf("the pager's log:\n%s", b)
		}
	})
	return p
}
