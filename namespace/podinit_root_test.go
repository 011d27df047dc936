//go:build root

package namespace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// podinit is the program alone, as the first process of a PID namespace.
type podinit struct {
	dir string
	cmd *exec.Cmd
}

func startPodinit(t *testing.T, args ...string) *podinit {
	t.Helper()
	p := &podinit{dir: t.TempDir()}
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	p.cmd = exec.CommandContext(testContext(t), initPath, append([]string{"run", "--dir", p.dir, "--ready-fd", "3"}, args...)...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}
	p.cmd.ExtraFiles = []*os.File{readyEnd}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	readyEnd.Close()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended already, or is to end now
		_ = p.cmd.Wait()
	})
	if _, err := ready.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	return p
}

// wait returns what the process ended with and what it recorded.
func (p *podinit) wait(t *testing.T) (code int, record string) {
	t.Helper()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode(), p.read(t, "exit")
}

func (p *podinit) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

func (p *podinit) dial(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(p.dir, name+".sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestPodinit(t *testing.T) {
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--", "sh", "-c", "echo out; echo err >&2; exit 3"}, 3, "out\n", "err\n"},
		{[]string{"--tty", "--", "sh", "-c", "stty size; echo err >&2"}, 0, "24 80\r\nerr\r\n", ""},
		{[]string{"--tty", "--rows", "5", "--columns", "7", "--", "stty", "size"}, 0, "5 7\r\n", ""},
		{[]string{"--env", "A=b c", "--cwd", "/usr", "--", "sh", "-c", `echo "$A"; pwd`}, 0, "b c\n/usr\n", ""},
		{[]string{"--uid", "77", "--gid", "88", "--groups", "99,100", "--", "sh", "-c", "id -u; id -G"}, 0, "77\n88 99 100\n", ""},
		{[]string{"--cwd", "/no/such", "--", "true"}, 126, "", "podinit: working directory /no/such: No such file or directory\n"},
		// What is left in the pipe when the command ends is not lost.
		{[]string{"--", "sh", "-c", "seq 1 10000"}, 0, sequence(1, 10000), ""},
	} {
		p := startPodinit(t, test.args...)
		code, record := p.wait(t)
		if code != test.code || record != fmt.Sprintf("%d\n", code) {
			t.Errorf("%q: ended with %d and recorded %q, want %d", test.args, code, record, test.code)
		}
		if out, errs := p.read(t, "stdout.0"), p.read(t, "stderr.0"); out != test.stdout || errs != test.stderr {
			t.Errorf("%q: said %q and %q, want %q and %q", test.args, out, errs, test.stdout, test.stderr)
		}
	}
}

func sequence(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestPodinitUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"run"}, {"run", "--"}, {"run", "--no-such", "x", "--", "true"}, {"run", "--uid"}, {"session", "--", "true"},
		{"run", "--id", "x", "--", "true"}, {"run", "--log-segment", "0", "--", "true"},
	} {
		out, err := exec.Command(initPath, args...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 125 || !strings.HasPrefix(string(out), "usage: podinit run ") {
			t.Errorf("%q: got %v, %q", args, err, out)
		}
	}
}

// The init of a PID namespace has no default actions: it must pass signals on
// even so, and not die of what it does not know.
func TestPodinitSignals(t *testing.T) {
	p := startPodinit(t, "--", "sh", "-c", "trap 'echo usr1' USR1; trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.01; done")
	eventually(t, "the command is ready", func() bool { return p.read(t, "stdout.0") == "ready\n" })
	for _, signal := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGPIPE, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGURG} {
		if err := p.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the signal has arrived", func() bool { return p.read(t, "stdout.0") == "ready\nusr1\n" })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _ := p.wait(t); code != 4 {
		t.Errorf("ended with %d", code)
	}
}

// The logs are cut at exact positions, and only so many segments are kept.
func TestPodinitLog(t *testing.T) {
	p := startPodinit(t, "--log-segment", "1000", "--", "seq", "1", "10000")
	if code, _ := p.wait(t); code != 0 {
		t.Errorf("ended with %d", code)
	}
	want := sequence(1, 10000)
	for base := 0; base <= len(want); base += 1000 {
		got, kept := p.read(t, fmt.Sprintf("stdout.%d", base)), want[base:min(base+1000, len(want))]
		if base < len(want)-len(want)%1000-LogSegmentsKept*1000 {
			kept = ""
		}
		if got != kept {
			t.Errorf("the segment at %d has %d bytes, want %d", base, len(got), len(kept))
		}
	}
	// A disk that takes nothing does not stop the command.
	p = startPodinit(t, "--stdin", "--", "sh", "-c", "read x; seq 1 100000; exit 7")
	for _, name := range []string{"stdout.0", "stderr.0"} {
		if !exists(filepath.Join(p.dir, name)) {
			t.Fatalf("%s is missing", name)
		}
	}
	if err := os.Chmod(p.dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := p.dial(t, "main").Write([]byte("i\n")); err != nil {
		t.Fatal(err)
	}
	if code, _ := p.wait(t); code != 7 {
		t.Errorf("ended with %d", code)
	}
}

// Whatever a client sends, the init lives on.
func TestPodinitBadPackets(t *testing.T) {
	p := startPodinit(t, "--tty", "--", "sh", "-c", "read x; exit 9")
	for _, packet := range []string{
		"?", "w", "w-1 x", "w99999 99999", "h", "s", "s\x00", "s--\x00", "s--id\x00", "s--id\x00../x\x00--\x00true\x00", "s--id\x00x\x00",
		"sno terminating zero", "s" + strings.Repeat("x\x00", 90<<10), "i" + strings.Repeat("x", 100<<10), strings.Repeat("y", 200<<10), "x", "a1",
	} {
		conn := p.dial(t, "main")
		if err := conn.SetWriteBuffer(1 << 20); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(packet)); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%.20q: %v", packet, err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Errorf("%.20q: %v", packet, err)
		}
		// It is closed from the other side too, whatever was answered.
		for buf := make([]byte, 1<<16); ; {
			if n, err := conn.Read(buf); n == 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
				if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%.20q: the connection stays open", packet)
				}
				break
			}
		}
	}
	if _, err := p.dial(t, "main").Write([]byte("i\n")); err != nil {
		t.Fatal(err)
	}
	if code, _ := p.wait(t); code != 9 {
		t.Errorf("ended with %d", code)
	}
}
