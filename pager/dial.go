package pager

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/trust"
)

const (
	dialTimeout = 5 * time.Second
	// silenceLimit is how long the source may take to confirm what the kernel has
	// sent it, or that it is there.
	silenceLimit = 10 * time.Second
	maxRefusal   = 4096 // bytes of what a source says when it refuses
)

// dial connects to the source's podd and has the connection become one of frames.
func dial(ctx context.Context, o Options) (net.Conn, error) {
	store, err := trust.Open(trust.Dir(o.StateDir)) // the certificate may have been renewed
	if err != nil {
		return nil, err
	}
	if len(o.Revoked) > 0 {
		revoked := map[string]bool{}
		for _, serial := range o.Revoked {
			revoked[serial] = true
		}
		store.SetRevoked(func(serial string) bool { return revoked[serial] })
	}
	var errs []error
	for _, address := range o.Addresses {
		conn, err := dialAddress(ctx, o, store, address)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("connecting to %s at %s: %w", o.Source, address, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("the source has no address")
	}
	return nil, errors.Join(errs...)
}

func dialAddress(ctx context.Context, o Options, store *trust.Store, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silenceLimit / 4, Interval: silenceLimit / 4, Count: 3}}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn, err := upgrade(ctx, o, store, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func upgrade(ctx context.Context, o Options, store *trust.Store, raw net.Conn) (net.Conn, error) {
	control, err := raw.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var setErr error
	err = control.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silenceLimit.Milliseconds()))
	})
	if err := errors.Join(err, setErr); err != nil {
		return nil, err
	}
	config := store.ClientTLS(trust.ServerName(trust.KindHost, o.Source))
	config.NextProtos = []string{"http/1.1"}
	config.DynamicRecordSizingDisabled = true
	conn := tls.Client(&buffered{raw, bufio.NewReaderSize(raw, 264<<10)}, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, "https://"+trust.ServerName(trust.KindHost, o.Source)+o.Path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", Protocol)
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		reason, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal)) // for people
		return nil, fmt.Errorf("it refused: %s: %s", response.Status, strings.TrimSpace(string(reason)))
	}
	if reader.Buffered() > 0 {
		return nil, errors.New("it does not wait for the pager's hello")
	}
	return conn, conn.SetDeadline(time.Time{})
}

// buffered reads a socket in large pieces: TLS asks for each record of 16 KiB.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
