//go:build root

package checkpoint

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// command lets the pod program do something.
func (c *control) command(t *testing.T, words ...any) (int, string) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(waitLimit)))
	fmt.Fprintln(c, words...)
	line, err := c.in.ReadString('\n')
	must(t, err)
	var result int
	_, err = fmt.Sscan(line, &result)
	must(t, err)
	_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
	return result, text
}

// do is command for something that must succeed.
func (c *control) do(t *testing.T, words ...any) int {
	t.Helper()
	result, text := c.command(t, words...)
	if result < 0 {
		t.Fatalf("%v: %s", words, text)
	}
	return result
}

// give sends a descriptor to the pod and returns its number there.
func (p *place) give(t *testing.T, fd int) int {
	t.Helper()
	c := p.connect(t)
	defer c.Close()
	_, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil)
	must(t, err)
	var number int
	_, err = fmt.Fscan(c, &number)
	must(t, err)
	// A dump meets no socket that is being closed.
	must(t, c.CloseWrite())
	_, err = io.Copy(io.Discard, c)
	must(t, err)
	return number
}

func (p *place) connect(t *testing.T) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(p.root, "tmp/give")})
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(waitLimit)))
	return c
}

func (p *place) preflight(t *testing.T, pid int) []pod.Blocker {
	t.Helper()
	blockers, err := Preflight(t.Context(), pid, PreflightOptions{
		Cgroup: p.freezer.Dir(), ExternalMounts: map[string]string{"/tmp": "tmp"},
	})
	must(t, err)
	return blockers
}

func hexBytes(b []byte) string { return hex.EncodeToString(b) }

// perfAttr is a struct perf_event_attr for the software clock.
func perfAttr() []byte {
	b := make([]byte, 64)
	b[0] = unix.PERF_TYPE_SOFTWARE
	b[4] = 64
	b[8] = unix.PERF_COUNT_SW_TASK_CLOCK
	return b
}

// openTun makes an interface in the namespace of this process.
func openTun() (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifreq, err := unix.NewIfreq("poddtun%d")
	if err != nil {
		return -1, err
	}
	ifreq.SetUint16(unix.IFF_TUN)
	return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
}

// inMountNS calls f on a thread that is in the mount namespace of a process.
func inMountNS(pid int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// startInPod starts a process in the pod as runc exec does: its parent is outside.
func startInPod(t *testing.T, p *place, pid int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(p.root, "bin/program"), "wait")
	cmd.Env = []string{"GODEBUG=containermaxprocs=0"}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(ns)
			if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
				return err
			}
			return cmd.Start()
		}()
	}()
	must(t, <-done)
	return cmd
}
