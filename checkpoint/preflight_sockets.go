package checkpoint

import (
	"fmt"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// families that CRIU carries are missing here (criu/sockets.c).
var families = map[int]string{
	unix.AF_ALG:       "the kernel's cryptography (AF_ALG)",
	unix.AF_BLUETOOTH: "Bluetooth",
	unix.AF_CAN:       "CAN",
	unix.AF_KEY:       "IPsec keys (AF_KEY)",
	unix.AF_NFC:       "NFC",
	unix.AF_PPPOX:     "PPP",
	unix.AF_QIPCRTR:   "Qualcomm IPC",
	unix.AF_RDS:       "RDS",
	unix.AF_SMC:       "SMC",
	unix.AF_TIPC:      "TIPC",
	unix.AF_VSOCK:     "the hypervisor (AF_VSOCK)",
	unix.AF_XDP:       "XDP",
}

// transports are the protocols of internet sockets that CRIU does not carry.
var transports = map[int]struct{ name, remedy string }{
	unix.IPPROTO_MPTCP: {"multipath TCP (MPTCP)", "set net.mptcp.enabled=0 in the pod, or GODEBUG=multipathtcp=0 for a Go program, and start it again"},
	unix.IPPROTO_SCTP:  {"SCTP", "use TCP"},
	unix.IPPROTO_DCCP:  {"DCCP", "use UDP"},
	unix.IPPROTO_L2TP:  {"L2TP", "end the tunnel"},
}

// duplicate makes a descriptor of this process for the same open file.
func (d descriptor) duplicate() (int, error) {
	pidfd, err := unix.PidfdOpen(d.process.pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, d.number, 0)
}

// checkSocket asks the socket itself, by a duplicate of the descriptor.
func (s *survey) checkSocket(d descriptor) error {
	fd, err := d.duplicate()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var numbers [3]int
	for i, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		if numbers[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil {
			return fmt.Errorf("asking a socket for its kind: %w", err)
		}
	}
	domain, kind, protocol := numbers[0], numbers[1], numbers[2]
	foreign, err := s.foreign(fd)
	if err != nil {
		return err
	}
	switch domain {
	case unix.AF_UNIX:
		return s.noteUnix(d, fd, foreign)
	case unix.AF_INET, unix.AF_INET6:
		if foreign {
			s.block(d.process, d.number, "has a socket of another network namespace open", insideRemedy)
			return nil
		}
		return s.checkInternet(d, fd, kind, protocol)
	case unix.AF_NETLINK:
		return s.checkNetlink(d, fd)
	case unix.AF_PACKET:
	default:
		name, ok := families[domain]
		if !ok {
			name = fmt.Sprintf("address family %d", domain)
		}
		s.block(d.process, d.number, "has a socket of "+name+" open", "start the program so that it does not use it")
	}
	return nil
}

// insideRemedy is for what connects the pod with the outside other than by TCP.
const insideRemedy = "close it, or start the program with its input and output inside of the pod"

// hostProcess names a process of the host.
func hostProcess(pid int) string {
	if pid == 0 {
		return "an unknown process"
	}
	if stat, err := procfs.ReadStat(pid); err == nil {
		return fmt.Sprintf("%s (process %d of the host)", stat.Program, pid)
	}
	return fmt.Sprintf("process %d of the host", pid)
}

// foreign reports whether a socket belongs to a network namespace that is not
// that of any process of the pod.
func (s *survey) foreign(fd int) (bool, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return false, fmt.Errorf("asking a socket for its network namespace: %w", err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return false, err
	}
	return !s.spaces[fmt.Sprintf("net:[%d]", st.Ino)], nil
}

func (s *survey) checkInternet(d descriptor, fd, kind, protocol int) error {
	if kind == unix.SOCK_RAW {
		return nil
	}
	if t, ok := transports[protocol]; ok {
		s.block(d.process, d.number, "uses "+t.name, t.remedy)
		return nil
	}
	switch protocol {
	case unix.IPPROTO_TCP:
		return s.checkTCP(d, fd)
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		return s.checkUDP(d, fd)
	case unix.IPPROTO_IP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return nil
	}
	s.block(d.process, d.number, fmt.Sprintf("uses internet protocol %d", protocol), "use TCP or UDP")
	return nil
}

// checkUDP looks for a datagram that is being put together.
func (s *survey) checkUDP(d descriptor, fd int) error {
	cork, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_CORK)
	if err != nil {
		return fmt.Errorf("asking a UDP socket whether it is corked: %w", err)
	}
	if cork != 0 {
		s.blockNow(d.process, d.number, "holds a UDP datagram back (UDP_CORK)", "try again; if it remains, have the program use MSG_MORE")
	}
	return nil
}

// checkNetlink looks for unread answers of the kernel, and for memberships that
// CRIU has no way to restore.
func (s *survey) checkNetlink(d descriptor, fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return fmt.Errorf("polling a netlink socket: %w", err)
	}
	if poll[0].Revents&unix.POLLIN != 0 {
		s.blockNow(d.process, d.number, "has messages of the kernel (netlink) that it has not read", "try again; if it remains, the program is stuck")
	}
	groups, err := unix.GetsockoptUint64(fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS)
	if err != nil {
		return fmt.Errorf("asking a netlink socket for its groups: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("asking a netlink socket for its port: %w", err)
	}
	address, _ := name.(*unix.SockaddrNetlink)
	if groups>>32 != 0 || groups != 0 && address != nil && address.Pid == 0 {
		s.block(d.process, d.number, "listens to groups of netlink messages that can't be joined again", "end the program, or keep it from watching the network")
	}
	return nil
}

// tcpListen is the state of a listening socket (net/tcp_states.h).
const tcpListen = 10

func (s *survey) checkTCP(d descriptor, fd int) error {
	info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("asking a socket for its state: %w", err)
	}
	// For a listening socket this is the number of connections that wait
	// to be accepted.
	if info.State == tcpListen && info.Unacked > 0 && !s.accepts(d, info.Unacked) {
		s.blockNow(d.process, d.number, fmt.Sprintf("has %d TCP connections that it has not accepted", info.Unacked),
			"try again; if it remains, the program is stuck")
	}
	// An error means that there is none.
	if ulp, err := unix.GetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP); err == nil && ulp != "" {
		s.block(d.process, d.number, "lets the kernel do "+ulp+" on a TCP connection", "switch kernel TLS off in the program")
	}
	return nil
}

// accepts reports whether the program has been seen to accept connections of a
// listener at which so many wait now. What waits then is no obstacle: when the
// pod gets no new packets, it will soon be none.
func (s *survey) accepts(d descriptor, waiting uint32) bool {
	key := [2]int{d.process.pid, d.number}
	w := s.waiting[key]
	w.accepts = w.accepts || waiting < w.last
	w.last = waiting
	s.waiting[key] = w
	return w.accepts
}
