package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"podd/pod"
)

// maxTCPQueries bounds what one TCP connection may ask before it has to
// reconnect; idleTimeout how long it may say nothing.
const (
	maxTCPQueries = 128
	idleTimeout   = 10 * time.Second
	ioTimeout     = 2 * time.Second
)

// Server listens on UDP and TCP.
type Server struct {
	servers []*dns.Server
	log     *slog.Logger
}

// Listen opens a UDP and a TCP socket at every address. An address that the
// machine has yet to get is accepted, as the gateway's is at the start. The
// error wraps pod.ErrConflict if the port is in use.
func Listen(ctx context.Context, addrs []netip.AddrPort, h dns.Handler, log *slog.Logger) (*Server, error) {
	s := &Server{log: log}
	config := net.ListenConfig{Control: freebind}
	for _, addr := range addrs {
		// TCP first: unlike UDP, a second listener is always refused.
		l, err := config.Listen(ctx, "tcp4", addr.String())
		if err != nil {
			s.Close()
			return nil, listenError(addr, err)
		}
		s.servers = append(s.servers, &dns.Server{Listener: l})
		p, err := config.ListenPacket(ctx, "udp4", l.Addr().String())
		if err != nil {
			s.Close()
			return nil, listenError(addr, err)
		}
		s.servers = append(s.servers, &dns.Server{PacketConn: p, UDPSize: dns.DefaultMsgSize})
	}
	for _, server := range s.servers {
		server.Handler = h
		server.MaxTCPQueries = maxTCPQueries
		server.ReadTimeout, server.WriteTimeout = ioTimeout, ioTimeout
		server.IdleTimeout = func() time.Duration { return idleTimeout }
	}
	return s, nil
}

func listenError(addr netip.AddrPort, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w: another name server has it: %w", pod.ErrConflict, err)
	}
	return fmt.Errorf("opening the name server's port at %s: %w", addr, err)
}

// freebind lets a socket be bound to an address that is not there yet.
func freebind(_, _ string, c syscall.RawConn) error {
	var err error
	if ctl := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}); ctl != nil {
		return ctl
	}
	return err
}

// Close closes the sockets of a server that does not serve. After Serve it does
// nothing more.
func (s *Server) Close() {
	for _, server := range s.servers {
		if server.Listener != nil {
			server.Listener.Close()
		} else {
			server.PacketConn.Close()
		}
	}
}

// Addrs are the addresses listened at, each once.
func (s *Server) Addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, server := range s.servers {
		if server.Listener != nil {
			addrs = append(addrs, server.Listener.Addr().(*net.TCPAddr).AddrPort())
		}
	}
	return addrs
}

// Serve answers until ctx ends, then finishes what is under way. It returns nil
// in that case, and otherwise why a socket failed.
func (s *Server) Serve(ctx context.Context) error {
	failed := make(chan error, len(s.servers))
	started := make(chan struct{}, len(s.servers))
	var running sync.WaitGroup
	for _, server := range s.servers {
		server.NotifyStartedFunc = func() { started <- struct{}{} }
		running.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				failed <- fmt.Errorf("serving DNS: %w", err)
			}
		})
	}
	// One that has not started can't be shut down.
	var err error
	for range s.servers {
		select {
		case <-started:
		case e := <-failed:
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	stopping, cancel := context.WithTimeout(context.Background(), ioTimeout)
	defer cancel()
	for _, server := range s.servers {
		if e := server.ShutdownContext(stopping); e != nil {
			s.log.Debug("stopping a name server socket", "error", e)
		}
	}
	running.Wait()
	return err
}
