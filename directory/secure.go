package directory

import (
	"context"
	"crypto/tls"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"podd/trust"
)

// secure makes an embedded etcd serve daemons of the cluster only. The handshake
// asks for a daemon's certificate; every call and every message of a stream asks
// again whether it still counts, so that a connection which was open already does
// not outlive a revocation.
//
// Once closed is closed, new calls are refused: see (*Embedded).Close.
func secure(c *embed.Config, store *trust.Store, closed <-chan struct{}) {
	admit := func(ctx context.Context) error {
		select {
		case <-closed:
			return status.Error(codes.Unavailable, "the directory is stopping")
		default:
			return authorize(ctx, store)
		}
	}
	certificate, key, authority := store.Paths()
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = certificate, key // read anew at every handshake
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = authority, true
	c.ClientTLSInfo.AllowedHostnames = []string{trust.DaemonName}
	c.ClientTLSInfo.MinVersion = tls.VersionTLS13
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := admit(ctx); err != nil {
				return nil, err
			}
			return next(ctx, request)
		}),
		grpc.ChainStreamInterceptor(func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := admit(stream.Context()); err != nil {
				return err
			}
			return next(server, &authorizedStream{stream, store})
		}),
	}
}

// authorize is nil when the caller is a daemon of the cluster.
func authorize(ctx context.Context, store *trust.Store) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "the connection is unknown")
	}
	secure, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return status.Error(codes.Unauthenticated, "the connection is not encrypted")
	}
	identity, err := store.Peer(&secure.State)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if !identity.Kind.Daemon() {
		return status.Errorf(codes.PermissionDenied, "the directory is for daemons, and not for %s", identity)
	}
	return nil
}

// authorizedStream asks again at every message, in both directions.
type authorizedStream struct {
	grpc.ServerStream
	store *trust.Store
}

func (s *authorizedStream) SendMsg(m any) error {
	if err := authorize(s.Context(), s.store); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (s *authorizedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return authorize(s.Context(), s.store)
}
