package checkpoint

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// unixSocket is a unix socket of the pod.
type unixSocket struct {
	descriptor
	// labelled says that messages come with more than data and descriptors,
	// such as the sender's credentials. CRIU can't put those into a queue.
	labelled bool
}

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
	if _, known := s.sockets[uint32(st.Ino)]; known {
		return nil
	}
	socket := unixSocket{descriptor: d}
	for _, option := range []int{unix.SO_PASSCRED, unix.SO_PASSPIDFD, unix.SO_TIMESTAMP, unix.SO_TIMESTAMPNS} {
		on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		if err != nil && err != unix.ENOPROTOOPT { // not in this kernel
			return fmt.Errorf("asking a socket for its options: %w", err)
		}
		socket.labelled = socket.labelled || err == nil && on != 0
	}
	s.sockets[uint32(st.Ino)] = socket
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

// checkUnixSockets looks for unix connections that leave the pod, or that are
// in a state CRIU has no way to restore.
func (s *survey) checkUnixSockets() error {
	if len(s.sockets) == 0 {
		return nil
	}
	var sockets []diagSocket
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
		ours, ok := s.sockets[i.inode]
		if !ok {
			continue
		}
		s.checkUnixQueues(ours, i)
		if i.connected && i.peer != 0 && !here[i.peer] {
			// Unix sockets belong to the network namespace they were
			// created in. One of the pod that is merely in flight, as
			// a descriptor sent over another socket, is there.
			link := fmt.Sprintf("socket:[%d]", i.peer)
			outside[link] = append(outside[link], ours.descriptor)
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

// checkUnixQueues looks at what waits to be accepted or read.
func (s *survey) checkUnixQueues(ours unixSocket, i diagSocket) {
	d := ours.descriptor
	switch {
	case slices.Contains(i.clients, 0):
		s.blockNow(d.process, d.number, "has not accepted a unix connection whose other end is closed already",
			"try again; if it remains, the program is stuck")
	case i.connected && i.peer == 0 && i.unread > 0:
		// Nobody has a descriptor of the peer: either it is closed, then
		// nothing waits for it; or it is still in the queue of a listener.
		s.blockNow(d.process, d.number, "sent data over a unix connection that is not accepted yet",
			"try again; if it remains, the program that listens is stuck")
	case ours.labelled && i.received > 0:
		s.blockNow(d.process, d.number, "has not read a message on a unix socket that asks for its sender or its time (SO_PASSCRED, SO_PASSPIDFD, SO_TIMESTAMP)",
			"try again; if it remains, the program is stuck")
	}
}
