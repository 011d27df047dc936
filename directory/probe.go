package directory

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"time"
)

// probeTimeout bounds the look at why an endpoint does not answer.
const probeTimeout = 2 * time.Second

// probe finds out why an endpoint could not be used: etcd's client says only
// that there was no answer in time. It returns nil when it finds nothing wrong.
func probe(ctx context.Context, endpoint string, config *tls.Config) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" || config == nil {
		return nil
	}
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName == "" {
		config.ServerName = u.Hostname()
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return err
	}
	// In TLS 1.3 the server judges the client's certificate after the client has
	// finished: a refusal is the first thing that can be read. A server that is
	// content waits for the client to speak, or sends HTTP/2 settings.
	if err := secure.SetReadDeadline(time.Now().Add(probeTimeout / 4)); err != nil {
		return err
	}
	_, err = secure.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
