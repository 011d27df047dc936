package netns

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Message is one message of netfilter's own protocol (linux/netfilter/nfnetlink.h).
type Message struct {
	// Subsystem is one of NFNL_SUBSYS_*, Type one of its messages.
	Subsystem, Type int
	// Flags are added to NLM_F_REQUEST.
	Flags int
	// Family is one of NFPROTO_*.
	Family byte
	Parts  []*nl.RtAttr
}

func (m Message) request() *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(m.Subsystem<<8|m.Type, m.Flags)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: m.Family})
	for _, p := range m.Parts {
		r.AddData(p)
	}
	return r
}

// Query sends a netfilter message that is answered by one message, and returns
// its attributes. The connection must have been made with NETLINK_NETFILTER,
// as for SendBatch. The error wraps the kernel's errno.
func (c *Conn) Query(m Message) (map[int][]byte, error) {
	r := m.request()
	r.Sockets = c.sockets
	answers, err := r.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 || len(answers[0]) < nl.SizeofNfgenmsg {
		return nil, fmt.Errorf("%d answers to a netfilter message, want one", len(answers))
	}
	attributes, err := nl.ParseRouteAttr(answers[0][nl.SizeofNfgenmsg:])
	if err != nil {
		return nil, fmt.Errorf("parsing answer to a netfilter message: %w", err)
	}
	values := make(map[int][]byte, len(attributes))
	for _, a := range attributes {
		values[int(a.Attr.Type&nl.NLA_TYPE_MASK)] = a.Value
	}
	return values, nil
}

// SendBatch sends messages to one subsystem of netfilter as a transaction: all
// of them take effect or none does. The library has no batches. The error
// wraps the errno of the first message the kernel dislikes.
func (c *Conn) SendBatch(messages ...Message) error {
	mark := func(kind int) *nl.NetlinkRequest {
		r := nl.NewNetlinkRequest(kind, 0)
		subsystem := binary.BigEndian.AppendUint16(nil, uint16(messages[0].Subsystem))
		r.AddData(&nl.Nfgenmsg{ResId: binary.NativeEndian.Uint16(subsystem)})
		return r
	}
	requests := []*nl.NetlinkRequest{mark(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, m := range messages {
		m.Flags |= unix.NLM_F_ACK
		requests = append(requests, m.request())
	}
	requests = append(requests, mark(unix.NFNL_MSG_BATCH_END))

	handle := c.sockets[unix.NETLINK_NETFILTER]
	socket := handle.Socket
	socket.Lock()
	defer socket.Unlock()
	var batch []byte
	for _, r := range requests {
		r.Seq = atomic.AddUint32(&handle.Seq, 1)
		batch = append(batch, r.Serialize()...)
	}
	if err := unix.Sendto(socket.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	// A transaction that fails as a whole is answered as its first message is.
	first, last := requests[0].Seq, requests[len(messages)].Seq
	for {
		answers, _, err := socket.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			// What came before is left of an earlier failure.
			if a.Header.Seq-first > last-first || a.Header.Type != unix.NLMSG_ERROR {
				continue
			}
			if errno := int32(binary.NativeEndian.Uint32(a.Data)); errno != 0 {
				return unix.Errno(-errno)
			}
			if a.Header.Seq == last {
				return nil
			}
		}
	}
}
