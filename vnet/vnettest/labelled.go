package vnettest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"podd/pod"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Datagram is a UDP datagram in an IPv4 packet, from and to the same port.
func Datagram(from, to netip.Addr, port uint16, payload string) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	return append(p, payload...)
}

// SendRaw sends a packet, source address and all, from the namespace at path.
func SendRaw(t testing.TB, path string, from, to netip.Addr, port uint16) {
	t.Helper()
	Do(t, path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, Datagram(from, to, port, "raw"), 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
}

// SendLabelled sends packet to a node as if it came out of, or were for, the
// pod with that label.
func SendLabelled(t testing.TB, from, to Node, label pod.Label, source, destination net.HardwareAddr, packet []byte) {
	t.Helper()
	// RFC 7348, section 5: the flag that there is an identifier, and it.
	frame := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, uint32(label)<<8)
	frame = append(frame, destination...)
	frame = append(frame, source...)
	frame = append(frame, 8, 0)
	frame = append(frame, packet...)
	from.Do(t, func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(to.Address, vxlan.DefaultPort).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(frame)
		return err
	})
}

// ListenUDP opens a UDP socket and returns a function that says how many
// datagrams have arrived since it was last asked.
func ListenUDP(t testing.TB, path, address string) func() int {
	t.Helper()
	var c net.PacketConn
	Do(t, path, func() (err error) {
		c, err = net.ListenPacket("udp4", address)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return func() int {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		count := 0
		for buffer := make([]byte, 2048); ; count++ {
			if _, _, err := c.ReadFrom(buffer); err != nil {
				return count
			}
		}
	}
}

// Packets returns how many packets a device in the namespace at path has sent
// and received.
func Packets(t testing.TB, path, device string) (sent, received uint64) {
	t.Helper()
	Do(t, path, func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		sent, received = link.Attrs().Statistics.TxPackets, link.Attrs().Statistics.RxPackets
		return nil
	})
	return sent, received
}
