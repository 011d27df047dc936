// Command program is the pod of the tests: the init of new pid, mount, IPC and
// UTS namespaces. It makes ROOT its root, fills memory with a pattern and
// serves TCP: what comes to port 7 goes back, and every line to port 8 is
// a command:
//
//	state                 tells what is to be equal before and after a move
//	syscall NUMBER ARG... makes a system call; @HEX is a pointer to these bytes
//	spawn FLAGS [trace]   starts a process with these clone flags
//	spawn 0 headless      starts one that ends its first thread
//	exec FILE ARG...      starts a program, which remains this one's child
//	kill PID              ends it
//
// It keeps the descriptors sent to the unix socket /tmp/give, one per
// connection, and answers with their numbers.
//
//	program ROOT MEBIBYTES
//	program session BASE SCRIPT
//	program headless
//	program wait
//	program connect SOCKET
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

func init() {
	runtime.LockOSThread() // main stays on the first thread
}

func main() {
	if os.Args[1] == "connect" {
		c, err := net.Dial("unix", os.Args[2])
		fmt.Println("connected", err)
		defer c.Close()
	}
	switch os.Args[1] {
	case "session":
		fmt.Fprintln(os.Stderr, "program:", session(os.Args[2], os.Args[3]))
		os.Exit(1)
	case "init":
		fmt.Fprintln(os.Stderr, "program:", sessionInit(os.Args[2]))
		os.Exit(1)
	}
	if os.Args[1] == "headless" {
		go func() { select {} }()
		syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0) // of this thread, which is the first
	}
	if os.Args[1] == "wait" || os.Args[1] == "connect" {
		for {
			syscall.Pause()
		}
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "program:", err)
		os.Exit(1)
	}
}

func run(root, mebibytes string) error {
	n, err := strconv.Atoi(mebibytes)
	if err != nil {
		return err
	}
	// Files of the host that a parent left open can't be dumped.
	if err := closeInherited(); err != nil {
		return err
	}
	if err := enter(root); err != nil {
		return err
	}
	memory, err := syscall.Mmap(-1, 0, n<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	fill(memory)
	var ticks atomic.Int64
	go func() {
		for range time.Tick(time.Millisecond) {
			ticks.Add(1)
		}
	}()
	// The kernel gives no default signals to an init.
	signal.Ignore(syscall.SIGPIPE)
	if err := serve(7, func(c net.Conn) { io.Copy(c, c) }); err != nil {
		return err
	}
	if err := serve(8, func(c net.Conn) {
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			words := strings.Fields(lines.Text())
			switch words[0] {
			case "state":
				host, _ := os.Hostname()
				fmt.Fprintf(c, "%d %s %d %x\n", os.Getpid(), host, ticks.Load(), sha256.Sum256(memory))
			case "syscall":
				fmt.Fprintln(c, systemCall(words[1:]))
			case "spawn":
				fmt.Fprintln(c, spawn(words[1], append(words, "")[2]))
			case "exec":
				process, err := os.StartProcess(words[1], words[1:], &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
				if err != nil {
					fmt.Fprintln(c, 0, err)
					continue
				}
				fmt.Fprintln(c, process.Pid, nil)
			case "kill":
				pid, _ := strconv.Atoi(words[1])
				syscall.Kill(pid, syscall.SIGKILL)
				_, err := syscall.Wait4(pid, nil, 0, nil)
				fmt.Fprintln(c, 0, err)
			}
		}
	}); err != nil {
		return err
	}
	if err := keep("/tmp/give"); err != nil {
		return err
	}
	select {}
}

// closeInherited marks all open files but the standard ones to be closed, and
// executes the program again. Closing them would hit the Go runtime's own.
func closeInherited() error {
	const done = "CLOSED_INHERITED=1"
	if os.Getenv("CLOSED_INHERITED") != "" {
		return nil
	}
	const closeRangeCloexec = 4
	if _, _, errno := syscall.Syscall(436, 3, ^uintptr(0)>>1, closeRangeCloexec); errno != 0 {
		return errno
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), done))
}

// enter makes root the root directory and lets go of everything outside.
func enter(root string) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("proc", root+"/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := syscall.Chdir(root); err != nil {
		return err
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return err
	}
	if err := syscall.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte("testpod")); err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return null.Close()
}

// fill writes words that are all different (splitmix64), so that no page can
// stand for another.
func fill(b []byte) {
	state := uint64(1)
	for i := 0; i+8 <= len(b); i += 8 {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		for j := range 8 {
			b[i+j] = byte(z >> (8 * j))
		}
	}
}

func serve(port int, handle func(net.Conn)) error {
	// CRIU can't dump MPTCP, which Go listens on by default.
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return nil
}

func systemCall(words []string) string {
	var args [7]uintptr
	for i, w := range words {
		if data, ok := strings.CutPrefix(w, "@"); ok {
			b := make([]byte, 4096)
			if _, err := hex.Decode(b, []byte(data)); err != nil {
				return fmt.Sprint(-1, err)
			}
			buffers = append(buffers, b)
			args[i] = uintptr(unsafe.Pointer(&b[0]))
			continue
		}
		n, err := strconv.ParseInt(w, 0, 64)
		if err != nil {
			return fmt.Sprint(-1, err)
		}
		args[i] = uintptr(n)
	}
	r, _, errno := syscall.Syscall6(args[0], args[1], args[2], args[3], args[4], args[5], args[6])
	if errno != 0 {
		return fmt.Sprint(-1, errno)
	}
	return fmt.Sprint(int(r), nil)
}

// buffers keeps what was passed to the kernel.
var buffers [][]byte

func spawn(flags, manner string) string {
	n, err := strconv.ParseUint(flags, 0, 64)
	if err != nil {
		return fmt.Sprint(-1, err)
	}
	mode := "wait"
	if manner == "headless" {
		mode = manner
	}
	cmd := exec.Command("/bin/program", mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(n), Ptrace: manner == "trace"}
	started := make(chan error)
	go func() {
		// A tracer is a thread, and must stay.
		runtime.LockOSThread()
		started <- cmd.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return fmt.Sprint(-1, err)
	}
	return fmt.Sprint(cmd.Process.Pid, nil)
}

// keep accepts connections on a unix socket and keeps the descriptor that
// each brings.
func keep(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			oob := make([]byte, 64)
			_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
			if err == nil && n > 0 {
				controls, _ := syscall.ParseSocketControlMessage(oob[:n])
				fds, _ := syscall.ParseUnixRights(&controls[0])
				fmt.Fprintln(c, fds[0])
			}
			// Until the other end closes.
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	return nil
}
