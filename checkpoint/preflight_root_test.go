//go:build root

package checkpoint

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// trouble is something that can't be carried.
type trouble struct {
	name string
	// make does it, and returns the descriptor (-1 for none), the process as the pod sees it
	// and how to end it. false means that this kernel can't.
	make func(t *testing.T) (descriptor, pid int, end func(), ok bool)
	// problem is part of what Preflight says.
	problem string
	// untried is why CRIU is not asked whether it agrees.
	untried string
}

func TestPreflight(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	s := w.source
	p := s.start(t, 1)
	c := w.control(t)
	was := c.ask(t)
	// A connection of this process is its own business.
	ours := s.connect(t)
	if b := s.preflight(t, p.pid); len(b) > 0 {
		t.Fatalf("a harmless pod has blockers: %+v", b)
	}
	ours.Close()

	// inPod makes a descriptor with a system call in the pod.
	inPod := func(call ...any) func(*testing.T) (int, int, func(), bool) {
		return func(t *testing.T) (int, int, func(), bool) {
			fd, text := c.command(t, append([]any{"syscall"}, call...)...)
			if fd < 0 {
				t.Logf("not in this kernel: %s", text)
				return 0, 0, nil, false
			}
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}
	}
	// given gives a descriptor of the host to the pod.
	given := func(open func() (int, error)) func(*testing.T) (int, int, func(), bool) {
		return func(t *testing.T) (int, int, func(), bool) {
			fd, err := open()
			must(t, err)
			number := s.give(t, fd)
			return number, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, number); unix.Close(fd) }, true
		}
	}
	spawned := func(words ...any) func(*testing.T) (int, int, func(), bool) {
		return func(t *testing.T) (int, int, func(), bool) {
			pid := c.do(t, append([]any{"spawn"}, words...)...)
			return -1, pid, func() { c.do(t, "kill", pid) }, true
		}
	}
	const lost = "it would carry it, but not to what it was"
	socket := func(domain, kind, protocol int) func(*testing.T) (int, int, func(), bool) {
		return inPod(unix.SYS_SOCKET, domain, kind, protocol)
	}
	troubles := []trouble{
		{"io_uring", inPod(unix.SYS_IO_URING_SETUP, 4, "@"), "uses io_uring", ""},
		{"userfaultfd", inPod(unix.SYS_USERFAULTFD, 0), "uses userfaultfd", ""},
		{"perf event", inPod(unix.SYS_PERF_EVENT_OPEN, "@"+hexBytes(perfAttr()), 0, -1, -1, 0), "uses perf_event", ""},
		{"bpf ring buffer", inPod(unix.SYS_BPF, unix.BPF_MAP_CREATE, "@1b000000000000000000000000100000", 72), "uses bpf-map", ""},
		{"landlock", inPod(unix.SYS_LANDLOCK_CREATE_RULESET, "@0100000000000000", 8, 0), "uses landlock-ruleset", ""},
		{"secret memory", inPod(unix.SYS_MEMFD_SECRET, 0), "secret memory", ""},
		{"MPTCP", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), "multipath TCP", ""},
		{"SCTP", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), "SCTP", ""},
		{"vsock", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), "AF_VSOCK", ""},
		{"AF_ALG", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), "AF_ALG", ""},
		{"XDP", socket(unix.AF_XDP, unix.SOCK_RAW, 0), "XDP", ""},
		{"Bluetooth", socket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 1), "Bluetooth", ""},
		{"TIPC", socket(unix.AF_TIPC, unix.SOCK_STREAM, 0), "TIPC", ""},

		{"user namespace", spawned(unix.CLONE_NEWUSER), "user namespace of its own", ""},
		{"pid namespace", spawned(unix.CLONE_NEWPID), "pid namespace of its own", ""},
		{"IPC namespace", spawned(unix.CLONE_NEWIPC), "IPC namespace of its own", ""},
		{"UTS namespace", spawned(unix.CLONE_NEWUTS), "UTS namespace of its own", ""},
		{"cgroup namespace", spawned(unix.CLONE_NEWCGROUP), "cgroup namespace of its own", ""},
		{"network namespace", spawned(unix.CLONE_NEWNET), "network namespace of its own", lost},
		{"traced", spawned(0, "trace"), "is traced", "it tries for seconds before it gives up"},

		{"host file", given(func() (int, error) { return unix.Open("/etc/passwd", unix.O_RDONLY, 0) }), "/etc/passwd of the host", ""},
		{"host device", given(func() (int, error) { return unix.Open("/dev/kmsg", unix.O_RDONLY, 0) }), "/dev/kmsg of the host", ""},
		{"tun", given(openTun), "poddtun", lost},
		{"foreign pidfd", given(func() (int, error) { return unix.PidfdOpen(os.Getpid(), 0) }), "not in the pod", ""},
		{"foreign socket", given(func() (int, error) { return unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) }), "another network namespace", lost},
		{"foreign namespace", given(func() (int, error) { return unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0) }), "a namespace open", lost},
		{"foreign pipe", given(func() (int, error) {
			var fds [2]int
			err := unix.Pipe(fds[:])
			t.Cleanup(func() { unix.Close(fds[0]) })
			return fds[1], err
		}), "other end is outside", lost},
		{"file system watch", given(func() (int, error) {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF, 0)
			if err == nil {
				err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, unix.AT_FDCWD, s.root)
			}
			return fd, err
		}), "whole file system", lost},

		{"working directory", func(t *testing.T) (int, int, func(), bool) {
			fd, err := unix.Open("/", unix.O_PATH, 0)
			must(t, err)
			defer unix.Close(fd)
			number := s.give(t, fd)
			c.do(t, "syscall", unix.SYS_FCHDIR, number)
			c.do(t, "syscall", unix.SYS_CLOSE, number)
			return -1, 1, func() { c.do(t, "syscall", unix.SYS_CHDIR, "@2f") }, true
		}, "working directory outside", ""},

		{"unix connection", func(t *testing.T) (int, int, func(), bool) {
			cmd := exec.Command(programPath, "connect", filepath.Join(s.root, "tmp/give"))
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			end := func() { cmd.Process.Kill(); cmd.Wait() }
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "connected <nil>\n" {
				end()
				t.Fatalf("%q, %v", line, err)
			}
			// Before that the connection is the other end's alone.
			eventually(t, "the pod accepts", func() bool { return len(s.preflight(t, p.pid)) > 0 })
			return 0, 1, end, true
		}, "leaves the pod", ""},

		{"unix connection not accepted", func(t *testing.T) (int, int, func(), bool) {
			address := "@" + hexBytes(append([]byte{unix.AF_UNIX, 0}, "/tmp/stuck"...))
			listener := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			c.do(t, "syscall", unix.SYS_BIND, listener, address, 13)
			c.do(t, "syscall", unix.SYS_LISTEN, listener, 5)
			client := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			c.do(t, "syscall", unix.SYS_CONNECT, client, address, 13)
			if b := s.preflight(t, p.pid); len(b) > 0 {
				t.Errorf("without data it is harmless, but: %+v", b)
			}
			c.do(t, "syscall", unix.SYS_WRITE, client, "@61", 1)
			return client, 1, func() {
				c.do(t, "syscall", unix.SYS_CLOSE, client)
				c.do(t, "syscall", unix.SYS_CLOSE, listener)
			}, true
		}, "not accepted", ""},

		{"unix connection not accepted and closed", func(t *testing.T) (int, int, func(), bool) {
			address := "@" + hexBytes(append([]byte{unix.AF_UNIX, 0}, "/tmp/closed"...))
			listener := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			c.do(t, "syscall", unix.SYS_BIND, listener, address, 14)
			c.do(t, "syscall", unix.SYS_LISTEN, listener, 5)
			client := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
			c.do(t, "syscall", unix.SYS_CONNECT, client, address, 14)
			c.do(t, "syscall", unix.SYS_CLOSE, client)
			return listener, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, listener) }, true
		}, "closed already", ""},

		{"message with its time", func(t *testing.T) (int, int, func(), bool) {
			address := "@" + hexBytes(append([]byte{unix.AF_UNIX, 0}, "/tmp/timed"...))
			fd := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			c.do(t, "syscall", unix.SYS_BIND, fd, address, 13)
			c.do(t, "syscall", unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, "@01000000", 4)
			if b := s.preflight(t, p.pid); len(b) > 0 {
				t.Errorf("without a message it is harmless, but: %+v", b)
			}
			c.do(t, "syscall", unix.SYS_SENDTO, fd, "@61", 1, 0, address, 13)
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}, "SO_TIMESTAMP", ""},

		{"corked UDP", func(t *testing.T) (int, int, func(), bool) {
			fd := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
			c.do(t, "syscall", unix.SYS_SETSOCKOPT, fd, unix.SOL_UDP, unix.UDP_CORK, "@01000000", 4)
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}, "UDP_CORK", ""},

		{"netlink group of a high number", func(t *testing.T) (int, int, func(), bool) {
			fd := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
			c.do(t, "syscall", unix.SYS_BIND, fd, "@100000000000000001000000", 12)
			if b := s.preflight(t, p.pid); len(b) > 0 {
				t.Errorf("group 1 is harmless, but: %+v", b)
			}
			c.do(t, "syscall", unix.SYS_SETSOCKOPT, fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, "@21000000", 4)
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}, "groups of netlink", ""},

		{"netlink group without a port", func(t *testing.T) (int, int, func(), bool) {
			fd := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
			c.do(t, "syscall", unix.SYS_SETSOCKOPT, fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, "@01000000", 4)
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}, "groups of netlink", ""},

		{"large deleted file", func(t *testing.T) (int, int, func(), bool) {
			fd := c.do(t, "syscall", unix.SYS_OPEN, "@"+hexBytes([]byte("/tmp/large")), unix.O_RDWR|unix.O_CREAT, 0o600)
			c.do(t, "syscall", unix.SYS_FALLOCATE, fd, 0, 0, ghostLimit+1)
			if b := s.preflight(t, p.pid); len(b) > 0 {
				t.Errorf("with its name it is harmless, but: %+v", b)
			}
			c.do(t, "syscall", unix.SYS_UNLINK, "@"+hexBytes([]byte("/tmp/large")))
			return fd, 1, func() { c.do(t, "syscall", unix.SYS_CLOSE, fd) }, true
		}, "/tmp/large, a deleted file of more than 256 MiB", ""},

		{"thread's descriptor", inPod(unix.SYS_PIDFD_OPEN, 1, unix.O_EXCL), "descriptor of a thread", ""},

		{"no first thread", func(t *testing.T) (int, int, func(), bool) {
			pid := c.do(t, "spawn", 0, "headless")
			eventually(t, "the first thread ends", func() bool { return len(s.preflight(t, p.pid)) > 0 })
			return -1, pid, func() { c.do(t, "kill", pid) }, true
		}, "first thread", ""},

		{"TCP connection not accepted", func(t *testing.T) (int, int, func(), bool) {
			listener := c.do(t, "syscall", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
			c.do(t, "syscall", unix.SYS_BIND, listener, "@02000009", 16) // port 9
			c.do(t, "syscall", unix.SYS_LISTEN, listener, 5)
			outside := w.dial(t, 9)
			return listener, 1, func() { outside.Close(); c.do(t, "syscall", unix.SYS_CLOSE, listener) }, true
		}, "1 TCP connections", ""},

		{"FUSE", func(t *testing.T) (int, int, func(), bool) {
			fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Logf("not in this kernel: %v", err)
				return 0, 0, nil, false
			}
			must(t, inMountNS(p.pid, func() error {
				return unix.Mount("test", "/dev", "fuse.test", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse))
			}))
			return -1, 1, func() {
				unix.Close(fuse)
				must(t, inMountNS(p.pid, func() error { return unix.Unmount("/dev", 0) }))
			}, true
		}, "/dev is a FUSE file system", "it would wait for the file system for ever"},

		{"started from outside", func(t *testing.T) (int, int, func(), bool) {
			cmd := startInPod(t, s, p.pid)
			b, err := procfs.NamespacePIDs(cmd.Process.Pid)
			must(t, err)
			return -1, b[len(b)-1], func() { cmd.Process.Kill(); cmd.Wait() }, true
		}, "started from outside", lost},

		{"state D", func(t *testing.T) (int, int, func(), bool) {
			// Version 1 of the freezer leaves tasks in that state.
			must(t, s.freezer.Freeze(t.Context()))
			return -1, 1, func() { must(t, s.freezer.Thaw()) }, s.freezer.v1
		}, "state D", "it can dump what the freezer stopped"},
	}
	for _, trouble := range troubles {
		t.Run(trouble.name, func(t *testing.T) {
			descriptor, pid, end, ok := trouble.make(t)
			if end != nil {
				defer end()
			}
			if !ok {
				return
			}
			blockers := s.preflight(t, p.pid)
			found := false
			for _, b := range blockers {
				t.Logf("%+v", b)
				// 0 for any descriptor.
				if b.PID == pid && (b.Descriptor == descriptor || descriptor == 0) && strings.Contains(b.Problem, trouble.problem) && b.Program != "" && b.Remedy != "" {
					found = true
				}
			}
			if !found {
				t.Errorf("process %d, descriptor %d: not found", pid, descriptor)
			}
			if trouble.untried != "" {
				return
			}
			// And CRIU agrees.
			o := s.dumpOptions(p.pid)
			o.ImagesDir = t.TempDir()
			d, err := e.PrepareDump(t.Context(), o)
			must(t, err)
			if _, err := d.Run(t.Context()); err == nil {
				t.Error("CRIU dumps it")
				must(t, d.Abort())
			} else {
				t.Log(err)
			}
		})
		if t.Failed() && len(s.preflight(t, p.pid)) > 0 {
			t.Fatalf("%s has not ended", trouble.name)
		}
	}
	if b := s.preflight(t, p.pid); len(b) > 0 {
		t.Errorf("blockers are left: %+v", b)
	}
	unharmed(t, c, was)
}
