package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Conn speaks netlink to one network namespace, whatever thread uses it:
// through the embedded Handle, or with messages of the caller's own making,
// where the library can't express one. It is safe for concurrent use.
type Conn struct {
	*netlink.Handle
	sockets map[int]*nl.SocketHandle
}

// Dial connects to the namespace at path, or to the calling thread's own when
// path is empty. Protocols in addition to NETLINK_ROUTE may be asked for.
func Dial(path string, protocols ...int) (*Conn, error) {
	var c *Conn
	open := func() (err error) {
		c, err = dial(protocols)
		return err
	}
	var err error
	if path == "" {
		err = open()
	} else {
		err = Do(path, open)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func dial(protocols []int) (*Conn, error) {
	protocols = append([]int{unix.NETLINK_ROUTE}, protocols...)
	handle, err := netlink.NewHandle(protocols...)
	if err != nil {
		return nil, fmt.Errorf("opening netlink handle: %w", err)
	}
	c := &Conn{Handle: handle, sockets: map[int]*nl.SocketHandle{}}
	for _, protocol := range protocols {
		socket, err := nl.GetNetlinkSocketAt(-1, -1, protocol)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("opening netlink socket: %w", err)
		}
		c.sockets[protocol] = &nl.SocketHandle{Socket: socket}
		// The kernel then says in words what it dislikes, which errno can't.
		if err := socket.SetExtAck(true); err != nil {
			c.Close()
			return nil, fmt.Errorf("asking netlink for error messages: %w", err)
		}
	}
	return c, nil
}

// Close releases the sockets.
func (c *Conn) Close() error {
	c.Handle.Close()
	for _, s := range c.sockets {
		s.Close()
	}
	return nil
}

// Send sends an rtnetlink request with the given parts and waits for its
// acknowledgement. flags are added to NLM_F_REQUEST and NLM_F_ACK. The error
// wraps the kernel's errno.
func (c *Conn) Send(messageType, flags int, parts ...nl.NetlinkRequestData) error {
	request := nl.NewNetlinkRequest(messageType, flags|unix.NLM_F_ACK)
	request.Sockets = c.sockets
	for _, p := range parts {
		request.AddData(p)
	}
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Attribute makes a netlink attribute with the given children.
func Attribute(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind, nil)
	for _, c := range children {
		a.AddChild(c)
	}
	return a
}

// IsNotFound reports whether a kernel or library error means that the device,
// address, route or neighbour named isn't there.
func IsNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}
