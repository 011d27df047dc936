//go:build root

package vnet_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"podd/pod"
	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
	"podd/vnet/vxlan"

	"golang.org/x/sys/unix"
)

// talker is a UDP socket of a pod that sends to itself.
type talker struct {
	*net.UDPConn
	address string
}

func newTalker(t *testing.T, path, address string) talker {
	t.Helper()
	var c *net.UDPConn
	vnettest.Do(t, path, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return talker{c, address}
}

// send sends a datagram with a mark. On the loopback device it arrives at once
// or never.
func (s talker) send(t *testing.T, mark int) error {
	t.Helper()
	inRaw(t, s, func(fd int) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			t.Fatal(err)
		}
	})
	_, err := s.WriteTo(fmt.Appendf(nil, "%#x", mark), s.LocalAddr())
	return err
}

// expect reads the one datagram that must have arrived, with that mark.
func (s talker) expect(t *testing.T, mark int) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(vnettest.Timeout))
	got := make([]byte, 100)
	n, _, err := s.ReadFrom(got)
	if want := fmt.Sprintf("%#x", mark); err != nil || string(got[:n]) != want {
		t.Errorf("%s: received %q (%v), want the datagram with mark %s", s.address, got[:n], err, want)
	}
}

// criuMark is SOCCR_MARK of CRIU, written out here because a change of it must
// be noticed.
const criuMark = 0xC114

// TestBlockLoopback lets a pod send to all of its own addresses: while it is
// blocked, and while it is only half blocked, just CRIU's packets arrive.
func TestBlockLoopback(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	b := binding(7, "100.64.0.1", topology.Hosts[0])
	path := newPod(t, n, b, vnet.AttachOptions{})
	addPeer(t, topology.Proxy, b)
	var talkers []talker
	for _, address := range []string{"127.0.0.1", b.Virtual.String(), "::1"} {
		talkers = append(talkers, newTalker(t, path, address))
	}
	outside := vnettest.ListenUDP(t, path, ":5000")
	toPod := vnettest.Datagram(pod.Gateway, b.Virtual, 5000, "")

	free := func() {
		t.Helper()
		for _, s := range talkers {
			for _, mark := range []int{0, criuMark} {
				if err := s.send(t, mark); err != nil {
					t.Errorf("%s: sending with mark %#x: %v", s.address, mark, err)
				}
				s.expect(t, mark)
			}
		}
		sendFrame(t, path, "lo", toPod)
		vnettest.Eventually(t, "a packet that is under way arrives", func() bool { return outside() == 1 })
	}
	blocked := func() {
		t.Helper()
		for _, s := range talkers {
			for _, mark := range []int{0, 1, criuMark + 1} {
				if err := s.send(t, mark); !errors.Is(err, unix.EPERM) {
					t.Errorf("%s: sending with mark %#x: got %v, want %v", s.address, mark, err, unix.EPERM)
				}
			}
			if err := s.send(t, criuMark); err != nil {
				t.Errorf("%s: sending as CRIU does: %v", s.address, err)
			}
			s.expect(t, criuMark)
		}
		_, before := vnettest.Packets(t, path, "lo")
		sendFrame(t, path, "lo", toPod)
		vnettest.Eventually(t, "a packet that is under way is received", func() bool { return received(t, path, "lo") > before })
		if count := outside(); count != 0 {
			t.Errorf("%d packets that were under way have arrived", count)
		}
		if is, err := n.Blocked(path); err != nil || !is {
			t.Errorf("Blocked: %v, %v", is, err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	free()
	for range 2 {
		must(n.Block(path))
	}
	blocked()
	for range 2 {
		must(n.Admit(path))
	}
	// The NIC is open for what comes in.
	topology.Proxy.Do(t, func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(b.Virtual, 5000).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("in"))
		return err
	})
	vnettest.Eventually(t, "a packet from the NIC arrives", func() bool { return outside() == 1 })
	blocked()
	// With both directions of the NIC open, the loopback device is all that is
	// still blocked.
	openNeighbor(t, path)
	blocked()
	for range 2 {
		must(n.Unblock(path))
	}
	if is, err := n.Blocked(path); err != nil || is {
		t.Errorf("Blocked after Unblock: %v, %v", is, err)
	}
	free()
}

// TestBlockLoopbackConnection blocks a pod one end of which has more to say to
// the other than that can take, and looks that no byte moves meanwhile and none
// is lost.
func TestBlockLoopbackConnection(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	path := newPod(t, n, binding(7, "100.64.0.1", topology.Hosts[0]), vnet.AttachOptions{})
	for _, address := range []string{"127.0.0.1:80", "100.64.0.1:81"} {
		listener := vnettest.Listen(t, path, address)
		sender := vnettest.Dial(t, path, address)
		receiver, err := listener.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer receiver.Close()
		sent := fill(t, sender)
		if vnettest.TCPInfo(t, sender).Notsent_bytes == 0 {
			t.Fatal("everything has been sent: the test proves nothing")
		}

		if err := n.Block(path); err != nil {
			t.Fatal(err)
		}
		segments := vnettest.TCPInfo(t, receiver).Segs_in
		// Whatever is under way is sent again, or room is asked for.
		attempts := func() uint32 {
			info := vnettest.TCPInfo(t, sender)
			return info.Total_retrans + uint32(info.Probes)
		}
		before := attempts()
		// Reading makes room, of which the sender is not told.
		got := drain(t, receiver)
		vnettest.Eventually(t, "the sender has tried", func() bool { return attempts() > before })
		if now := vnettest.TCPInfo(t, receiver).Segs_in; now != segments {
			t.Errorf("%s: %d segments have arrived", address, now-segments)
		}
		if err := n.Unblock(path); err != nil {
			t.Fatal(err)
		}
		rest := make([]byte, sent-len(got))
		if _, err := io.ReadFull(receiver, rest); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(append(got, rest...), pattern(sent)) {
			t.Errorf("%s: what has arrived is not what was sent", address)
		}
	}
}

// pattern is what fill writes.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}

// fill writes until nothing more fits, and returns how much has.
func fill(t *testing.T, c *net.TCPConn) (sent int) {
	t.Helper()
	const most = 64 << 20
	data := pattern(most)
	inRaw(t, c, func(fd int) {
		for sent < most {
			n, err := unix.Write(fd, data[sent:])
			if err != nil {
				return
			}
			sent += n
		}
	})
	if sent == most {
		t.Fatalf("%d bytes were written, and no end of it", sent)
	}
	return sent
}

// drain reads what has arrived and waits for nothing.
func drain(t *testing.T, c *net.TCPConn) (got []byte) {
	t.Helper()
	inRaw(t, c, func(fd int) {
		for buffer := make([]byte, 64<<10); ; {
			n, err := unix.Read(fd, buffer)
			if err != nil || n == 0 {
				return
			}
			got = append(got, buffer[:n]...)
		}
	})
	return got
}

// inRaw runs fn on the connection's descriptor, which does not block.
func inRaw(t *testing.T, c syscall.Conn, fn func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

// sendFrame puts an IPv4 packet on a device as it is, past routing.
func sendFrame(t *testing.T, path, device string, packet []byte) {
	t.Helper()
	vnettest.Do(t, path, func() error {
		nic, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		const protocol = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8
		return unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: nic.Index, Halen: 6})
	})
}

// openNeighbor lets the pod send through its NIC again, and does nothing else.
func openNeighbor(t *testing.T, path string) {
	t.Helper()
	c, err := netns.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nic, err := c.LinkByName(vnet.NIC)
	if err != nil {
		t.Fatal(err)
	}
	if err := vxlan.SetNeighbor(c, nic.Attrs().Index, pod.Gateway, vxlan.ProxyMAC); err != nil {
		t.Fatal(err)
	}
}
