//go:build root

package pagesync

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// program is the compiled testdata/mutate.c.
var program string

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		if os.Getuid() != 0 {
			return 1, fmt.Errorf("these tests need root")
		}
		dir, err := os.MkdirTemp("", fmt.Sprintf("poddtest-pagesync-%d-", os.Getpid()))
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "mutate")
		out, err := exec.Command("cc", "-O2", "-pthread", "-o", program, "testdata/mutate.c").CombinedOutput()
		if err != nil {
			return 1, fmt.Errorf("compiling testdata/mutate.c: %w: %s", err, out)
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startPod runs the program as the init of a pid namespace, until the test ends,
// and returns its pid.
func startPod(t testing.TB, args ...string) int {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	// A forked child must not outlive the thread that Pdeathsig goes by.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		runtime.UnlockOSThread()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the program printed %q: %v", line, err)
	}
	return cmd.Process.Pid
}

// stop stops all processes of the pod and waits until they are.
func stop(t testing.TB, init int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for quiet := 0; quiet < 2; {
		ids, err := podProcesses(init)
		must(t, err)
		quiet++
		for _, id := range ids {
			stat, err := procfs.ReadStat(id.pid)
			if procfs.Gone(err) || err == nil && stat.State == 'Z' {
				continue
			}
			must(t, err)
			if stat.State != 'T' {
				quiet = 0
				if err := unix.Kill(id.pid, unix.SIGSTOP); err != nil && !procfs.Gone(err) {
					t.Fatal(err)
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the pod does not stop")
		}
		runtime.Gosched()
	}
}

// cont lets them run on.
func cont(t testing.TB, init int) {
	t.Helper()
	ids, err := podProcesses(init)
	must(t, err)
	for _, id := range ids {
		if err := unix.Kill(id.pid, unix.SIGCONT); err != nil && !procfs.Gone(err) {
			t.Fatal(err)
		}
	}
}

// session is a Source with a receiver.
type session struct {
	t      testing.TB
	init   int
	source *Source
	rate   int // of connections, in bytes a second
	*receiver
	ended chan error // of the receiver's connections
	serve chan error
}

func newSession(t testing.TB, init int) *session {
	t.Helper()
	source, err := NewSource(SourceOptions{Init: init, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { must(t, source.Close()) })
	return &session{t: t, init: init, source: source, receiver: newReceiver(),
		ended: make(chan error, 100), serve: make(chan error, 100)}
}

// connect makes a connection over loopback, for real buffers, and has both ends
// at work.
func (s *session) connect(again bool, wants ...Region) {
	s.t.Helper()
	ours, theirs := connection(s.t)
	if s.rate > 0 {
		raw, err := ours.(*net.TCPConn).SyscallConn()
		must(s.t, err)
		must(s.t, raw.Control(func(fd uintptr) {
			must(s.t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, s.rate))
		}))
	}
	go func() { s.serve <- s.source.Serve(ours) }()
	go func() { s.ended <- s.run(theirs, again, wants...) }()
	must(s.t, s.source.Connected(s.t.Context()))
}

func connection(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	theirs, err := net.Dial("tcp", listener.Addr().String())
	must(t, err)
	ours, err := listener.Accept()
	must(t, err)
	return ours, theirs
}

// requireSame compares what the receiver has with the stopped processes' memory,
// in every range that CRIU is to leave out.
func (s *session) requireSame(left []Left) (bytes int64) {
	s.t.Helper()
	ids, err := podProcesses(s.init)
	must(s.t, err)
	inPod := make(map[int]int)
	for _, id := range ids {
		inPod[id.pid] = id.inPod
	}
	carried := 0
	for _, r := range s.regions {
		carried += r.Pages()
	}
	buf := make([]byte, 1<<20)
	pages := 0
	for _, l := range left {
		pid, ok := inPod[l.PID]
		if !ok {
			s.t.Fatalf("%+v is of no process of the pod", l)
		}
		mem, err := os.Open("/proc/" + strconv.Itoa(l.PID) + "/mem")
		must(s.t, err)
		for at := l.Start; at < l.End; {
			b := buf[:min(uint64(len(buf)), l.End-at)]
			n, err := mem.ReadAt(b, int64(at))
			if n < len(b) && err != nil && err != io.EOF {
				// A guard: what is there can't be read by anyone.
				b = b[:n&^(PageSize-1)+PageSize]
				clear(b[n&^(PageSize-1):])
			}
			for ; len(b) > 0; b = b[PageSize:] {
				pages++
				k := pageKey{pid, at}
				if !s.verified[k] {
					s.t.Fatalf("%v was not verified", k)
				}
				got := s.pages[k]
				if got == nil {
					got = zeroPage[:]
				}
				if string(got) != string(b[:PageSize]) {
					s.t.Fatalf("page %#x of process %d (%d in the pod) is not what it is at the source", at, l.PID, pid)
				}
				at += PageSize
			}
		}
		must(s.t, mem.Close())
	}
	if pages != carried {
		s.t.Errorf("CRIU is to leave out %d pages, and the pager was told of %d", pages, carried)
	}
	return int64(pages) * PageSize
}
