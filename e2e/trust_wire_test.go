//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/vnet/netns"
)

// The program of the pod holds its secret in memory and in a file, so often that
// it does not matter how that is cut into packets, and among noise, so that
// nothing shrinks it.
const (
	markers       = 20000
	noise         = 200
	markedProgram = `
import os, sys, time
marker = bytes.fromhex(sys.stdin.readline())
memory = b"".join(marker + os.urandom(200) for _ in range(20000))
with open("/var/tmp/marked", "wb") as f:
    f.write(b"".join(marker + os.urandom(200) for _ in range(20000)))
open("/var/tmp/ready", "w").close()
while True:
    time.sleep(1)
`
)

// What is said between hosts is not to be read on the way: neither the memory
// nor the files of a pod that moves, nor what podctl has passed on.
func TestWireIsEncrypted(t *testing.T) {
	marker := make([]byte, 32)
	if _, err := rand.Read(marker); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "", "--", "sleep", "inf")
	for i, target := range []string{"b", "a"} {
		wire := captureRouter(t, marker)
		if i == 0 {
			// The podd of c passes it on to a.
			cmd := podctlCommand(bounded(t), "c", "exec", "-i", p.name, "--", "sh", "-euc",
				`read m; echo "$m" | setsid python3 -c "$0" >/dev/null 2>&1 & until test -e /var/tmp/ready; do sleep 0.02; done`, markedProgram)
			cmd.Stdin = strings.NewReader(hex.EncodeToString(marker) + "\n")
			if r := run(t, cmd); r.code != 0 {
				t.Fatalf("starting the program: exit code %d\n%s", r.code, r.stderr)
			}
		}
		receipt := p.move(target)
		if got := p.exec("sh", "-c", "wc -c < /var/tmp/marked; pgrep -c python3"); got != fmt.Sprintf("%d\n1", markers*(noise+len(marker))) {
			t.Fatalf("after the move: %q", got)
		}
		wire.stop(t)
		if found := wire.found.Load(); found > 0 {
			t.Errorf("the pod's secret is in %d packets on the way to %s", found, target)
		}
		// Once in memory, once in the file.
		if n := wire.bytes.Load(); n < 2*markers*noise {
			t.Errorf("only %d bytes were seen on the way to %s, of %d of memory: the test proves nothing", n, target, receipt.MemoryBytes)
		}
	}

	wire := captureRouter(t, marker)
	sendInClear(t, "a", "b", marker)
	wire.stop(t)
	if wire.found.Load() == 0 {
		t.Error("a secret that was sent in clear was not found: the test proves nothing")
	}
}

// sendInClear sends data from one node to another over TCP.
func sendInClear(t *testing.T, from, to string, data []byte) {
	t.Helper()
	listener, err := theLab.Listen(t.Context(), to, "tcp", theLab.Address(to).String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := theLab.Dial(bounded(t), from, "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got, err := io.ReadAll(accepted); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes arrived, %v", len(got), err)
	}
}

// capture looks into the TCP packets that pass the router between its nodes.
type capture struct {
	end  func()
	done sync.WaitGroup
	err  error
	// found counts packets with the secret in them, bytes all that was seen.
	found, bytes atomic.Int64
}

// captureRouter looks for a secret, as it is and in hexadecimal, from now on.
func captureRouter(t *testing.T, secret []byte) *capture {
	t.Helper()
	var fd int
	err := netns.Do(theLab.Namespace(lab.Router), func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(20e6) // so often it is looked whether to stop
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol}), // every device
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{}
	stop := make(chan struct{})
	c.end = sync.OnceFunc(func() { close(stop) })
	c.done.Go(func() {
		defer unix.Close(fd)
		c.err = c.read(fd, stop, [][]byte{secret, []byte(hex.EncodeToString(secret))})
	})
	t.Cleanup(func() { c.end(); c.done.Wait() })
	return c
}

func (c *capture) read(fd int, stop <-chan struct{}, secrets [][]byte) error {
	buffer := make([]byte, 1<<17) // more than a packet that was not yet cut up
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			// Everything that came was looked at.
			select {
			case <-stop:
				return nil
			default:
				continue
			}
		}
		if err != nil {
			return err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		p, isIP := parsePacket(buffer[:n])
		if !ok || link.Pkttype == unix.PACKET_OUTGOING || !isIP || p.protocol != unix.IPPROTO_TCP {
			continue // UDP is VXLAN: what pods say themselves
		}
		c.bytes.Add(int64(n))
		for _, secret := range secrets {
			if bytes.Contains(buffer[:n], secret) {
				c.found.Add(1)
			}
		}
	}
}

// stop ends it when all packets until now were looked at.
func (c *capture) stop(t *testing.T) {
	t.Helper()
	c.end()
	c.done.Wait()
	if c.err != nil {
		t.Fatal(c.err)
	}
}
