package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pathMTU is what the path between a host and the proxy has to take in one
// piece: a pod's 1450 bytes with 50 of labels around them.
const pathMTU = 1500

// Path is the way from this machine to another one's physical address.
type Path struct {
	// To names the other one.
	To string
	// From and Address are the two ends.
	From, Address netip.Addr
	// Interface is where packets leave, Owner the one that has From.
	Interface, Owner string
	// InterfaceMTU and RouteMTU are what the kernel knows, RouteMTU 0 where
	// the route has none of its own.
	InterfaceMTU, RouteMTU int
	// Probed is the largest packet that was answered, 0 when none was.
	Probed int
	// RPFilter is the reverse-path filter in force on Owner: 0, 1 or 2.
	RPFilter int
	// LookErr and ProbeErr are why some of it is not known.
	LookErr, ProbeErr error
}

// LookAtPath asks the kernel for the route and then sends pings that must not be
// fragmented, in the network namespace of the calling thread.
func LookAtPath(ctx context.Context, to string, from, address netip.Addr) Path {
	p := Path{To: to, From: from, Address: address}
	p.LookErr = p.look()
	p.Probed, p.ProbeErr = probe(ctx, from, address)
	return p
}

func (p *Path) look() error {
	c, err := netns.Dial("")
	if err != nil {
		return err
	}
	defer c.Close()
	// As it was set up, without what the kernel has learnt about the path.
	routes, err := c.RouteGetWithOptions(p.Address.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(routes) == 0 {
		return fmt.Errorf("finding the route to %s: %w", p.Address, errors.Join(err))
	}
	p.RouteMTU = routes[0].MTU
	link, err := c.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("finding the interface towards %s: %w", p.Address, err)
	}
	p.Interface, p.InterfaceMTU = link.Attrs().Name, link.Attrs().MTU
	addresses, err := c.AddrList(nil, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addresses {
		if a.IP.Equal(p.From.AsSlice()) {
			if owner, err := c.LinkByIndex(a.LinkIndex); err == nil {
				p.Owner = owner.Attrs().Name
			}
		}
	}
	if p.Owner == "" {
		return nil
	}
	filters := LookAtParameters([]Parameter{{Name: "net/ipv4/conf/all/rp_filter"}, {Name: "net/ipv4/conf/" + p.Owner + "/rp_filter"}})
	for _, value := range filters.Values {
		p.RPFilter = max(p.RPFilter, value)
	}
	return filters.Err
}

// Judge is about what full packets meet on the way.
func (p Path) Judge() []Finding {
	const check = "mtu"
	if p.LookErr != nil {
		return []Finding{Bad(check, fmt.Sprintf("ip route get %s   # this machine must have a route to %s", p.Address, p.To), "the way to %s: %v", p.To, p.LookErr)}
	}
	var findings []Finding
	if p.Owner == "" {
		findings = append(findings, Bad(check, fmt.Sprintf("ip -4 addr   # then give the daemon the right --address, or the machine the address %s", p.From),
			"no interface has the address %s that this machine is known by", p.From))
	} else if p.RPFilter == 1 && p.Owner != p.Interface {
		findings = append(findings, Worry("sysctl", fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2 net.ipv4.conf.all.rp_filter=0", p.Owner),
			"packets of %s that come in by %s are dropped by strict reverse-path filtering, because the route there is by %s", p.To, p.Owner, p.Interface))
	}
	const cost = "pods' full packets cross in fragments, which costs throughput and is what firewalls drop"
	switch known := p.InterfaceMTU; {
	case known < pathMTU:
		findings = append(findings, Worry(check, fmt.Sprintf("ip link set dev %s mtu %d", p.Interface, pathMTU),
			"interface %s towards %s takes packets of %d bytes, not %d: %s", p.Interface, p.To, known, pathMTU, cost))
	case p.RouteMTU != 0 && p.RouteMTU < pathMTU:
		findings = append(findings, Worry(check, fmt.Sprintf("ip route get %s   # then take mtu %d out of that route", p.Address, p.RouteMTU),
			"the route to %s says packets of %d bytes, not %d: %s", p.To, p.RouteMTU, pathMTU, cost))
	case p.Probed == 0:
		findings = append(findings, Good(check, "%s takes %d bytes; the way to %s could not be measured: %v", p.Interface, known, p.To, p.ProbeErr))
	case p.Probed < pathMTU:
		findings = append(findings, Worry(check, fmt.Sprintf("tracepath -n %s   # shows the link; then on the router there: ip link set dev LINK mtu %d", p.Address, pathMTU),
			"on the way to %s packets of at most %d bytes pass, not %d: %s", p.To, p.Probed, pathMTU, cost))
	default:
		findings = append(findings, Good(check, "packets of %d bytes pass to %s in one piece", p.Probed, p.To))
	}
	return findings
}

// probeSizes are tried in turn: Ethernet, PPPoE, tunnels, VXLAN, WireGuard, the
// least of IPv6 and of IPv4.
var probeSizes = []int{pathMTU, 1492, 1480, 1450, 1420, 1400, 1350, 1280, 576}

const (
	// probeWait is how long an answer is waited for, probeTries how often a
	// size is tried.
	probeWait  = 300 * time.Millisecond
	probeTries = 2
	headers    = 20 + 8 // IPv4 and ICMP
)

// probe sends ICMP echo requests (RFC 792) with the don't-fragment bit, largest
// first, and returns the size of the first one that is answered.
func probe(ctx context.Context, from, to netip.Addr) (int, error) {
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			// Sends with the bit set whatever path MTU the kernel has in mind.
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		})
		return errors.Join(err, set)
	}}
	conn, err := listen.ListenPacket(ctx, "ip4:icmp", from.String())
	if err != nil {
		return 0, fmt.Errorf("opening a socket for pings: %w", err)
	}
	defer conn.Close()
	p := prober{conn: conn, to: to, id: uint16(rand.Uint32())}
	most := pathMTU
	for i, size := range probeSizes {
		if size > most {
			continue
		}
		answered, limit, err := p.try(ctx, size)
		if err != nil {
			return 0, err
		}
		if answered {
			return size, nil
		}
		if limit > 0 {
			most = limit
			continue
		}
		if i > 0 {
			continue
		}
		// Is there anybody who answers at all?
		if answered, _, err := p.try(ctx, probeSizes[len(probeSizes)-1]); err != nil {
			return 0, err
		} else if !answered {
			break
		}
	}
	return 0, fmt.Errorf("%s does not answer pings", to)
}

// prober sends pings to one address.
type prober struct {
	conn     net.PacketConn
	to       netip.Addr
	id       uint16
	sequence uint16
}

// try sends a ping of that size, again if need be. limit is what a router has
// said that it takes instead, 0 if none has.
func (p *prober) try(ctx context.Context, size int) (answered bool, limit int, err error) {
	for range probeTries {
		p.sequence++
		_, err := p.conn.WriteTo(echoRequest(p.id, p.sequence, size-headers), &net.IPAddr{IP: p.to.AsSlice()})
		if errors.Is(err, unix.EMSGSIZE) {
			return false, size - 1, nil // more than the interface takes
		}
		if err != nil {
			return false, 0, fmt.Errorf("sending a ping: %w", err)
		}
		if answered, limit, err = awaitEcho(ctx, p.conn, p.to, p.id, p.sequence); answered || limit > 0 || err != nil {
			return answered, limit, err
		}
	}
	return false, 0, nil
}

// The types of ICMP messages, and the code of fragmentation needed (RFC 792, RFC 1191).
const (
	icmpEchoReply      = 0
	icmpUnreachable    = 3
	icmpEcho           = 8
	icmpFragmentNeeded = 4
)

// echoRequest is an ICMP echo request with that many bytes of data.
func echoRequest(id, sequence uint16, length int) []byte {
	m := make([]byte, 8+length)
	m[0] = icmpEcho
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], sequence)
	var sum uint32
	for i := 0; i+1 < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum))
	return m
}

// awaitEcho waits for the answer to one request, or for a router's word on how
// large a packet it takes.
func awaitEcho(ctx context.Context, conn net.PacketConn, to netip.Addr, id, sequence uint16) (answered bool, limit int, err error) {
	deadline := time.Now().Add(probeWait)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return false, 0, fmt.Errorf("waiting for the answer to a ping: %w", err)
	}
	for buffer := make([]byte, 2048); ; {
		n, from, err := conn.ReadFrom(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, 0, ctx.Err()
		}
		if err != nil {
			return false, 0, fmt.Errorf("waiting for the answer to a ping: %w", err)
		}
		m := buffer[:n]
		sender, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		switch {
		case len(m) < 8:
		case m[0] == icmpEchoReply && sender.Unmap() == to && isEcho(m, id, sequence):
			return true, 0, nil
		case m[0] == icmpUnreachable && m[1] == icmpFragmentNeeded && len(m) >= 8+20:
			inner := m[8:]
			if length := int(inner[0]&0xf) * 4; len(inner) >= length+8 && isEcho(inner[length:], id, sequence) {
				return false, int(binary.BigEndian.Uint16(m[6:])), nil
			}
		}
	}
}

func isEcho(m []byte, id, sequence uint16) bool {
	return binary.BigEndian.Uint16(m[4:]) == id && binary.BigEndian.Uint16(m[6:]) == sequence
}
