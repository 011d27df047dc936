//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
)

// packet is what the tests look at of an IPv4 packet.
type packet struct {
	// incoming is false for what the device itself sends.
	incoming           bool
	protocol           int
	source, target     netip.Addr
	sourcePort, toPort uint16
	flags              byte      // of TCP
	label              pod.Label // of VXLAN
}

// TCP flags, RFC 9293, section 3.1.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

func (p packet) String() string {
	return fmt.Sprintf("protocol %d from %s:%d to %s:%d, flags %#x, label %s, incoming %v",
		p.protocol, p.source, p.sourcePort, p.target, p.toPort, p.flags, p.label, p.incoming)
}

// parsePacket reads a packet from its IP header on; ok is false for anything
// but IPv4.
func parsePacket(data []byte) (p packet, ok bool) {
	if len(data) < 20 || data[0]>>4 != 4 {
		return p, false
	}
	p.protocol = int(data[9])
	p.source = netip.AddrFrom4([4]byte(data[12:16]))
	p.target = netip.AddrFrom4([4]byte(data[16:20]))
	payload := data[min(len(data), int(data[0]&15)*4):]
	if len(payload) < 8 || p.protocol != unix.IPPROTO_TCP && p.protocol != unix.IPPROTO_UDP {
		return p, true
	}
	p.sourcePort, p.toPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	switch {
	case p.protocol == unix.IPPROTO_TCP && len(payload) >= 14:
		p.flags = payload[13]
	case p.protocol == unix.IPPROTO_UDP && p.toPort == vxlan.DefaultPort && len(payload) >= 16:
		p.label = pod.Label(binary.BigEndian.Uint32(payload[12:]) >> 8)
	}
	return p, true
}

// sniffer counts the packets of a device, before and beside anything the
// kernel does with them.
type sniffer struct {
	cancel func()
	done   sync.WaitGroup

	mu           sync.Mutex
	seen, wanted int
	examples     []packet
	err          error
}

// sniff counts the packets of a device in the network namespace at path, and
// those of them that match. A namespace and device that aren't there yet are
// waited for.
func sniff(t *testing.T, path, device string, match func(packet) bool) *sniffer {
	t.Helper()
	s := &sniffer{}
	stop := make(chan struct{})
	s.cancel = sync.OnceFunc(func() { close(stop) })
	opened := make(chan struct{})
	s.done.Go(func() {
		ready := sync.OnceFunc(func() { close(opened) })
		defer ready()
		for {
			fd, err := openSniffer(path, device)
			if err == nil {
				ready()
				s.read(fd, stop, match)
				return
			}
			// The caller goes on, and has the one that is to come.
			ready()
			select {
			case <-stop:
				s.fail(err)
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	<-opened
	t.Cleanup(func() { s.cancel(); s.done.Wait() })
	return s
}

// sniffPod is sniff for the NIC of an incarnation of a pod. What matches is
// what isn't from or to the pod's own address.
func sniffPod(t *testing.T, host, name string, epoch pod.Epoch, own netip.Addr) *sniffer {
	t.Helper()
	path := fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir(host), name, epoch)
	return sniff(t, path, "eth0", func(p packet) bool {
		return p.incoming && p.target != own || !p.incoming && p.source != own
	})
}

// openSniffer opens a socket that gets every packet of the device from its
// network header on; see packet(7).
func openSniffer(path, device string) (fd int, err error) {
	err = netns.Do(path, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		// So often it is looked whether to stop.
		wait := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
		err = errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Attrs().Index}),
		)
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	return fd, err
}

func (s *sniffer) read(fd int, stop <-chan struct{}, match func(packet) bool) {
	defer unix.Close(fd)
	buffer := make([]byte, 256) // headers are enough
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN):
			continue // ENETDOWN: the device has gone, with the incarnation
		case err != nil:
			s.fail(err)
			return
		}
		p, ok := parsePacket(buffer[:n])
		if !ok {
			continue
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		p.incoming = ok && link.Pkttype != unix.PACKET_OUTGOING
		s.mu.Lock()
		s.seen++
		if match(p) {
			s.wanted++
			if len(s.examples) < 5 {
				s.examples = append(s.examples, p)
			}
		}
		s.mu.Unlock()
	}
}

func (s *sniffer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// matched is how many packets have matched so far.
func (s *sniffer) matched() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// requireNone ends the counting: there must have been packets, and none that
// matched.
func (s *sniffer) requireNone(t *testing.T, what string) {
	t.Helper()
	s.cancel()
	s.done.Wait()
	if s.err != nil {
		t.Errorf("%s: %v", what, s.err)
	}
	if s.seen == 0 {
		t.Errorf("%s: not one packet was seen, so the test proves nothing", what)
	}
	if s.wanted > 0 {
		t.Errorf("%s: %d of %d packets, the first: %v", what, s.wanted, s.seen, s.examples)
	}
}
