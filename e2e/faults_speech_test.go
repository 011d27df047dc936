//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
)

// speech is who said what of a pod's packets at the router, in order: one socket
// gets what comes in by any of its links, before anything is dropped there.
type speech struct {
	stop func()
	done sync.WaitGroup

	mu       sync.Mutex
	speakers map[speaker]*utterance
	resets   []string
	seen     int
	err      error
}

// speaker is a host that sends packets with a label.
type speaker struct {
	host  string
	label pod.Label
}

// utterance is the first and the last packet of a speaker, by number and time.
type utterance struct {
	first, last     int
	firstAt, lastAt time.Time
}

// listen begins to listen at the router.
func listen(t *testing.T) *speech {
	t.Helper()
	s := &speech{speakers: map[speaker]*utterance{}}
	links := map[int]string{}
	fd := -1
	err := theLab.Do(lab.Router, func() error {
		for _, node := range theLab.Nodes() {
			if link, err := netlink.LinkByName(node); err == nil {
				links[link.Attrs().Index] = node
			}
		}
		var err error
		fd, err = openEverything()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	s.stop = sync.OnceFunc(func() { close(stop); s.done.Wait() })
	s.done.Go(func() { s.read(fd, links, stop) })
	t.Cleanup(s.stop)
	return s
}

// openEverything opens a socket that gets every packet of every device of the
// thread's network namespace; see packet(7).
func openEverything() (int, error) {
	protocol := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol}),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (s *speech) read(fd int, links map[int]string, stop <-chan struct{}) {
	defer unix.Close(fd)
	buffer := make([]byte, 256) // headers are enough
	for {
		select {
		case <-stop:
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil && stats.Drops > 0 {
				err = fmt.Errorf("%d packets were too many to listen to", stats.Drops)
			}
			s.mu.Lock()
			s.err = errors.Join(s.err, err)
			s.mu.Unlock()
			return
		default:
		}
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				s.mu.Lock()
				s.err = errors.Join(s.err, err)
				s.mu.Unlock()
				return
			}
			continue
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			s.note(links[link.Ifindex], buffer[:n])
		}
	}
}

// note takes down one packet that came in by the link of a node. The proxy only
// passes on what others say.
func (s *speech) note(node string, data []byte) {
	p, ok := parsePacket(data)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	inner := p
	if p.protocol == unix.IPPROTO_UDP && p.toPort == vxlan.DefaultPort && node != lab.Proxy {
		const headers = 20 + 8 + 8 + 14 // outer IP, UDP, VXLAN, inner Ethernet
		if inner, ok = parsePacket(data[min(headers, len(data)):]); !ok {
			return
		}
		u := s.speakers[speaker{node, p.label}]
		if u == nil {
			u = &utterance{first: s.seen, firstAt: time.Now()}
			s.speakers[speaker{node, p.label}] = u
		}
		u.last, u.lastAt = s.seen, time.Now()
	}
	if inner.protocol == unix.IPPROTO_TCP && inner.flags&flagRST != 0 && ofPod(inner.source, inner.target) {
		s.resets = append(s.resets, fmt.Sprintf("from %s: %v", node, inner))
	}
}

// ofPod reports whether one of the addresses is a pod's.
func ofPod(addresses ...netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(a netip.Addr) bool {
		return lab.PublicPrefix.Contains(a) || lab.VirtualPrefix.Contains(a)
	})
}

// requireOrder ends the listening after a move. Once the new copy has spoken
// nothing came from the old one, or only the old one ever spoke; and nobody
// reset a connection with the pod.
func (s *speech) requireOrder(t *testing.T, before, after podView) {
	t.Helper()
	s.stop()
	for _, wrong := range s.judge(before, after) {
		t.Error(wrong)
	}
}

// judge says what was wrong with what was heard.
func (s *speech) judge(before, after podView) (wrong []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		wrong = append(wrong, fmt.Sprintf("listening at the router: %v", s.err))
	}
	if len(s.resets) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d resets were seen, the first %s", len(s.resets), s.resets[0]))
	}
	now := s.speakers[speaker{after.Host, after.Label}]
	if now == nil {
		return append(wrong, fmt.Sprintf("not one packet of %+v was seen, so the test proves nothing", after))
	}
	for who, u := range s.speakers {
		switch {
		case who == speaker{after.Host, after.Label}:
		case who != speaker{before.Host, before.Label}:
			wrong = append(wrong, fmt.Sprintf("host %s has spoken with label %s, which it never had the right to; the pod was on %s with label %s and is on %s with label %s",
				who.host, who.label, before.Host, before.Label, after.Host, after.Label))
		case u.last > now.first:
			wrong = append(wrong, fmt.Sprintf("the superseded copy on host %s spoke %v after the one on host %s had begun to",
				who.host, u.lastAt.Sub(now.firstAt), after.Host))
		}
	}
	return wrong
}

// What is heard is understood, and judged.
func TestSpeech(t *testing.T) {
	s := &speech{speakers: map[speaker]*utterance{}}
	from, to := netip.MustParseAddrPort("198.18.0.7:7000"), netip.MustParseAddrPort("192.0.2.10:40000")
	s.note(lab.Proxy, ipv4(unix.IPPROTO_TCP, from.Addr(), to.Addr(), segment(from, to, flagRST)))
	s.note(lab.Proxy, ipv4(unix.IPPROTO_TCP, to.Addr(), to.Addr(), segment(to, to, flagRST)))
	if len(s.resets) != 1 || s.seen != 2 {
		t.Errorf("%d packets, resets %v", s.seen, s.resets)
	}
	// say is what a host sends for the pod, with a label.
	say := func(host string, label byte, flags byte) {
		header := make([]byte, 8+14)
		header[6] = label
		inner := ipv4(unix.IPPROTO_TCP, from.Addr(), to.Addr(), segment(from, to, flags))
		udp := binary.BigEndian.AppendUint16([]byte{0x99, 0x99}, vxlan.DefaultPort)
		udp = append(append(append(udp, 0, 0, 0, 0), header...), inner...)
		s.note(host, ipv4(unix.IPPROTO_UDP, theLab.Address(host), theLab.Address(lab.Proxy), udp))
	}
	say("a", 7, flagACK|flagRST)
	if len(s.resets) != 2 || s.speakers[speaker{"a", 7}] == nil {
		t.Errorf("resets %v, speakers %v", s.resets, s.speakers)
	}

	s = &speech{speakers: map[speaker]*utterance{}}
	old, next := podView{Host: "a", Label: 7}, podView{Host: "b", Label: 8}
	requireJudged := func(after podView, want ...string) {
		t.Helper()
		wrong := s.judge(old, after)
		if len(wrong) != len(want) {
			t.Fatalf("%q, want %q", wrong, want)
		}
		for i := range want {
			if !strings.Contains(wrong[i], want[i]) {
				t.Errorf("%q, want %q", wrong[i], want[i])
			}
		}
	}
	say("a", 7, flagACK)
	requireJudged(old)
	requireJudged(next, "proves nothing")
	say("b", 8, flagACK)
	requireJudged(next)
	requireJudged(old, "never had the right")
	say("a", 7, flagACK)
	requireJudged(next, "superseded copy on host a")
	say("b", 8, flagRST)
	requireJudged(next, "1 resets", "superseded copy on host a")
}
