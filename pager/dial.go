package pager

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"podd/netconn"
	"podd/trust"
)

const (
	dialTimeout = 5 * time.Second
	// silenceLimit is how long the source may take to confirm what the kernel has
	// sent it, or that it is there, and to say something while a fault waits.
	silenceLimit = 10 * time.Second
)

// dial connects to the source's podd and has the connection become one of frames.
func dial(ctx context.Context, o Options) (*tls.Conn, error) {
	store, err := trust.Open(trust.Dir(o.StateDir)) // the certificate may have been renewed
	if err != nil {
		return nil, err
	}
	revoked, err := readRevoked(o.RevokedFile)
	if err != nil {
		return nil, err
	}
	store.SetRevoked(func(serial string) bool { return slices.Contains(revoked, serial) })
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

func dialAddress(ctx context.Context, o Options, store *trust.Store, address string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
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

func upgrade(ctx context.Context, o Options, store *trust.Store, raw net.Conn) (*tls.Conn, error) {
	if err := netconn.LimitSilence(raw, silenceLimit); err != nil {
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
	reader := bufio.NewReader(conn)
	if err := netconn.AskUpgrade(conn, reader, "https://"+trust.ServerName(trust.KindHost, o.Source)+o.Path, Protocol, deadline); err != nil {
		return nil, err
	}
	if reader.Buffered() > 0 {
		return nil, errors.New("it does not wait for the pager's hello")
	}
	return conn, nil
}

// buffered reads a socket in large pieces: TLS asks for each record of 16 KiB.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
