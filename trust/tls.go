package trust

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"podd/pod"
)

// SetRevoked makes every handshake from now on, in both directions, ask whether
// the peer's certificate was revoked. Connections that exist are not touched.
func (s *Store) SetRevoked(revoked func(serial string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = revoked
}

func (s *Store) isRevoked(c *x509.Certificate) bool {
	s.mu.RLock()
	revoked := s.revoked
	s.mu.RUnlock()
	return revoked(Serial(c))
}

// certificate is what this member shows in a handshake.
func (s *Store) certificate() *tls.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := &tls.Certificate{PrivateKey: s.key, Leaf: s.chain[0]}
	for _, certificate := range s.chain {
		c.Certificate = append(c.Certificate, certificate.Raw)
	}
	return c
}

// Peer is who is at the other end of a connection. The error wraps
// pod.ErrUnknownCaller when it showed no certificate, and pod.ErrUntrusted when
// that was revoked, be it after the handshake.
func (s *Store) Peer(state *tls.ConnectionState) (Identity, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return Identity{}, fmt.Errorf("%w: the connection has no client certificate of this cluster", pod.ErrUnknownCaller)
	}
	leaf := state.VerifiedChains[0][0]
	identity, err := FromCertificate(leaf)
	if err != nil {
		return Identity{}, err
	}
	if s.isRevoked(leaf) {
		return Identity{}, fmt.Errorf("%w: the certificate of %s was revoked", pod.ErrUntrusted, identity)
	}
	return identity, nil
}

// config is common to both ends: TLS 1.3 (RFC 8446), and no tickets, so that
// every connection shows today's certificate.
func (s *Store) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.VerifiedChains) == 0 {
				return nil // no certificate was asked for, or none given
			}
			_, err := s.Peer(&state)
			return err
		},
	}
}

// ServerTLS is for a listener. A client certificate is verified if there is one;
// what those who have none may do is up to the server. The caller may change the
// configuration.
func (s *Store) ServerTLS() *tls.Config {
	c := s.config()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(), nil }
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.ClientCAs = s.roots
	c.NextProtos = []string{"h2", "http/1.1"}
	return c
}

// ClientTLS is for connections to the member with that name (ServerName,
// DaemonName, DirectoryName). With an empty name whoever uses the configuration
// sets it. The caller may change the configuration.
func (s *Store) ClientTLS(serverName string) *tls.Config {
	c := s.config()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate(), nil }
	c.RootCAs = s.roots
	c.ServerName = serverName
	return c
}

// DirectoryTLS is for connections to the directory. etcd's client insists on the
// endpoint's host as the server's name, so the name is verified here instead:
// that of the directory, wherever it is.
func (s *Store) DirectoryTLS() *tls.Config {
	c := s.ClientTLS("")
	c.InsecureSkipVerify = true // see VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: s.roots, DNSName: DirectoryName})
		if err != nil {
			return fmt.Errorf("%w: %w", pod.ErrUntrusted, err)
		}
		state.VerifiedChains = chains
		_, err = s.Peer(&state)
		return err
	}
	return c
}
