package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// diagSocket is one unix socket of a network namespace.
type diagSocket struct {
	inode uint32
	// listens says that it accepts connections; clients are the inodes of those
	// that wait, 0 for one that is closed already.
	listens bool
	clients []uint32
	// connected says that it has a peer; that one's inode is 0 when nobody has
	// a descriptor of it.
	connected bool
	peer      uint32
	// unread is how many bytes it has sent that the peer has not read,
	// received how many it has not read itself.
	unread, received uint32
}

// The layout of include/uapi/linux/unix_diag.h.
const (
	unixDiagRequestSize = 24
	unixDiagMessageSize = 16
	unixDiagState       = 2 // offsets in a message
	unixDiagInode       = 4
	unixDiagPeer        = 2 // attributes
	unixDiagClients     = 3
	unixDiagQueues      = 4
	attributeHeaderSize = 4
)

// unixDiagRequest asks for all unix sockets, with peers, clients and queues. Names are not
// asked for: they are of no use here, and netlink's own UnixSocketDiagInfo ends
// its list at the first socket that has one.
type unixDiagRequest struct{}

func (unixDiagRequest) Len() int { return unixDiagRequestSize }

func (unixDiagRequest) Serialize() []byte {
	request := make([]byte, unixDiagRequestSize)
	request[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0)) // every state
	binary.NativeEndian.PutUint32(request[12:], 1<<unixDiagPeer|1<<unixDiagClients|1<<unixDiagQueues)
	return request
}

// unixSockets lists the unix sockets of this thread's network namespace.
func unixSockets() ([]diagSocket, error) {
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	request.AddData(unixDiagRequest{})
	var sockets []diagSocket
	var malformed error
	err := request.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(message []byte) bool {
		var s diagSocket
		if s, malformed = parseDiagSocket(message); malformed != nil {
			return false
		}
		sockets = append(sockets, s)
		return true
	})
	if err == nil {
		err = malformed
	}
	return sockets, err
}

func parseDiagSocket(message []byte) (diagSocket, error) {
	var s diagSocket
	if len(message) < unixDiagMessageSize {
		return s, fmt.Errorf("a message about a unix socket has %d bytes", len(message))
	}
	s.listens = message[unixDiagState] == tcpListen
	s.inode = binary.NativeEndian.Uint32(message[unixDiagInode:])
	for rest := message[unixDiagMessageSize:]; len(rest) >= attributeHeaderSize; {
		size, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if size < attributeHeaderSize || size > len(rest) {
			return s, fmt.Errorf("attribute %d of a unix socket has %d bytes, of %d", kind, size, len(rest))
		}
		value := rest[attributeHeaderSize:size]
		switch {
		case kind == unixDiagPeer && len(value) >= 4:
			s.connected, s.peer = true, binary.NativeEndian.Uint32(value)
		case kind == unixDiagClients:
			for ; len(value) >= 4; value = value[4:] {
				s.clients = append(s.clients, binary.NativeEndian.Uint32(value))
			}
		case kind == unixDiagQueues && len(value) >= 8 && !s.listens:
			s.received = binary.NativeEndian.Uint32(value)
			s.unread = binary.NativeEndian.Uint32(value[4:])
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	return s, nil
}
