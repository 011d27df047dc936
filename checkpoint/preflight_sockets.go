package checkpoint

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
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

// checkSocket asks the socket itself, by a duplicate of the descriptor.
func (s *survey) checkSocket(d descriptor) error {
	pidfd, err := unix.PidfdOpen(d.process.pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, d.number, 0)
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
	case unix.AF_NETLINK, unix.AF_PACKET:
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

// noteUnix keeps a unix socket for checkUnixSockets. One that was accepted from
// outside belongs to the network namespace of the one that connected, and is
// reported at once.
func (s *survey) noteUnix(d descriptor, fd int, foreign bool) error {
	if foreign {
		// It tells who connected; 0 is a process outside of our pid namespace.
		peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return fmt.Errorf("asking a socket for its peer: %w", err)
		}
		s.leavesPod(d, int(peer.Pid))
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if _, known := s.sockets[uint32(st.Ino)]; !known {
		s.sockets[uint32(st.Ino)] = d
	}
	return nil
}

// leavesPod reports a unix connection to a process of the host, which is 0 if it
// is not known.
func (s *survey) leavesPod(d descriptor, peer int) {
	if peer == os.Getpid() {
		return // the caller's own, see Preflight
	}
	s.blockNow(d.process, d.number, "has a unix connection that leaves the pod, to "+hostProcess(peer),
		"close it, use TCP, or run both ends in the pod")
}

// hostProcess names a process of the host.
func hostProcess(pid int) string {
	if pid == 0 {
		return "an unknown process"
	}
	if stat, err := readStat(pid); err == nil {
		return fmt.Sprintf("%s (process %d of the host)", stat.program, pid)
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
	case unix.IPPROTO_IP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return nil
	}
	s.block(d.process, d.number, fmt.Sprintf("uses internet protocol %d", protocol), "use TCP or UDP")
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

// checkUnixSockets looks for unix connections that leave the pod, or that are
// in a state CRIU has no way to restore.
func (s *survey) checkUnixSockets() error {
	if len(s.sockets) == 0 {
		return nil
	}
	var sockets []unixSocket
	err := inNetNS(fmt.Sprintf("/proc/%d/ns/net", s.init), func() error {
		var err error
		sockets, err = unixSockets()
		return err
	})
	if err != nil {
		return fmt.Errorf("listing unix sockets: %w", err)
	}
	here := make(map[uint32]bool)
	for _, i := range sockets {
		here[i.inode] = true
	}
	outside := make(map[string][]descriptor)
	links := make(map[string]bool)
	for _, i := range sockets {
		d, ok := s.sockets[i.inode]
		if !ok || !i.connected {
			continue
		}
		switch {
		case i.peer == 0:
			// Nobody has a descriptor of the peer: either it is closed, then
			// nothing waits for it; or it is still in the queue of a listener.
			if i.unread > 0 {
				s.blockNow(d.process, d.number, "sent data over a unix connection that is not accepted yet",
					"try again; if it remains, the program that listens is stuck")
			}
		case !here[i.peer]:
			// Unix sockets belong to the network namespace they were
			// created in. One of the pod that is merely in flight, as
			// a descriptor sent over another socket, is there.
			link := fmt.Sprintf("socket:[%d]", i.peer)
			outside[link] = append(outside[link], d)
			links[link] = true
		}
	}
	holders, err := s.outsideHolders(links)
	if err != nil {
		return err
	}
	for link, descriptors := range outside {
		for _, d := range descriptors {
			s.leavesPod(d, holders[link])
		}
	}
	return nil
}
