// Command program is the pod of the tests: the init of new pid, mount, IPC and
// UTS namespaces. It makes ROOT its root, fills memory with a pattern and
// serves TCP: what comes to port 7 goes back, and every line to port 8 is
// answered with the state of the process.
//
//	program ROOT MEBIBYTES
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"context"
)

func main() {
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
			host, _ := os.Hostname()
			fmt.Fprintf(c, "%d %s %d %x\n", os.Getpid(), host, ticks.Load(), sha256.Sum256(memory))
		}
	}); err != nil {
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
