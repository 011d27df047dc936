package cli_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
	"podd/trust"
)

// fakeTrust is a cluster of one host with a real authority. Users are known by
// their certificates as everywhere; what they may do is simple: viewers nothing
// that changes anything.
type fakeTrust struct {
	store     *trust.Store
	authority *trust.Authority
	tokens    map[string]*fakeToken
	members   map[string]*poddv1.Member
	renewals  int
	// lifetime is that of users' certificates.
	lifetime time.Duration
	removed  map[string]bool // hosts
}

type fakeToken struct {
	*poddv1.Token
	secret string // its hash
}

func newFakeTrust(dir string) (*fakeTrust, error) {
	address := netip.MustParseAddr("127.0.0.1")
	store, err := trust.Init(trust.Dir(dir), trust.InitOptions{
		Identity: trust.Identity{Kind: trust.KindHost, Name: "a"}, Addresses: []netip.Addr{address},
		Info: trust.ClusterInfo{Directory: trust.Embedded, Issuers: []string{"127.0.0.1:7443"}},
	})
	if err != nil {
		return nil, err
	}
	authority, err := trust.LoadAuthority(trust.Dir(dir))
	return &fakeTrust{
		store: store, authority: authority, tokens: map[string]*fakeToken{}, removed: map[string]bool{},
		members: map[string]*poddv1.Member{"host.a": {Kind: "host", Name: "a", ExpiresAt: timestamppb.New(store.Leaf().NotAfter)}},
	}, err
}

type callerKey struct{}

// caller is who calls: by its certificate, or the local root by the socket.
func caller(ctx context.Context) trust.Identity {
	identity, _ := ctx.Value(callerKey{}).(trust.Identity)
	return identity
}

// identify finds out who calls, and refuses those who may not.
func (s *server) identify(next http.Handler) http.Handler {
	errors := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := trust.Identity{Kind: trust.KindLocal, Name: "root", Role: trust.RoleAdmin}
		join := filepath.Base(r.URL.Path) == "Join"
		if r.TLS != nil && !join {
			var err error
			if who, err = s.trust.store.Peer(r.TLS); err != nil {
				_ = errors.Write(w, r, connect.NewError(connect.CodeUnauthenticated, err))
				return
			}
			changes := map[string]bool{"CreatePod": true, "RemovePod": true, "CreateToken": true, "Exec": true}
			if changes[filepath.Base(r.URL.Path)] && !who.Role.Allows(trust.RoleOperator) {
				err := fmt.Errorf("%w: %s may not %s", pod.ErrDenied, who, filepath.Base(r.URL.Path))
				_ = errors.Write(w, r, connect.NewError(connect.CodePermissionDenied, err))
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// serveTLS serves beside the socket, and returns the address.
func (s *server) serveTLS(handler http.Handler) (address string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	httpServer := &http.Server{Handler: handler, TLSConfig: s.trust.store.ServerTLS(), ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = httpServer.ServeTLS(listener, "", "")
	}()
	return listener.Addr().String(), func() {
		httpServer.Close()
		<-served
	}, nil
}

func (s *server) GetTrust(ctx context.Context, _ *connect.Request[poddv1.GetTrustRequest]) (*connect.Response[poddv1.GetTrustResponse], error) {
	who := caller(ctx)
	return connect.NewResponse(&poddv1.GetTrustResponse{
		Authority: string(s.trust.store.AuthorityPEM()), Recipient: s.trust.store.Recipient(), Issuers: s.trust.store.Info().Issuers,
		You: who.String(), YourRole: string(who.Role),
	}), nil
}

func (s *server) CreateToken(ctx context.Context, r *connect.Request[poddv1.CreateTokenRequest]) (*connect.Response[poddv1.CreateTokenResponse], error) {
	token, err := s.trust.store.NewToken([]string{s.tls})
	if err != nil {
		return nil, err
	}
	expires := timestamppb.New(time.Now().Add(r.Msg.GetLifetime().AsDuration()))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust.tokens[token.ID] = &fakeToken{secret: trust.SecretHash(token.Secret), Token: &poddv1.Token{
		Id: token.ID, Kind: r.Msg.GetKind(), Name: r.Msg.GetName(), Role: r.Msg.GetRole(), CreatedBy: caller(ctx).String(), ExpiresAt: expires,
	}}
	return connect.NewResponse(&poddv1.CreateTokenResponse{Token: token.String(), ExpiresAt: expires}), nil
}

func (s *server) ListTokens(context.Context, *connect.Request[poddv1.ListTokensRequest]) (*connect.Response[poddv1.ListTokensResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &poddv1.ListTokensResponse{}
	for _, t := range s.trust.tokens {
		out.Tokens = append(out.Tokens, t.Token)
	}
	return connect.NewResponse(out), nil
}

func (s *server) DeleteToken(_ context.Context, r *connect.Request[poddv1.DeleteTokenRequest]) (*connect.Response[poddv1.DeleteTokenResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trust.tokens[r.Msg.GetId()] == nil {
		return nil, fmt.Errorf("%w: token %q", pod.ErrNotFound, r.Msg.GetId())
	}
	delete(s.trust.tokens, r.Msg.GetId())
	return connect.NewResponse(&poddv1.DeleteTokenResponse{}), nil
}

func (s *server) ListMembers(context.Context, *connect.Request[poddv1.ListMembersRequest]) (*connect.Response[poddv1.ListMembersResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &poddv1.ListMembersResponse{}
	for _, m := range s.trust.members {
		out.Members = append(out.Members, m)
	}
	return connect.NewResponse(out), nil
}

func (s *server) RevokeUser(_ context.Context, r *connect.Request[poddv1.RevokeUserRequest]) (*connect.Response[poddv1.RevokeUserResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trust.members["user."+r.Msg.GetName()] == nil {
		return nil, fmt.Errorf("%w: user %q", pod.ErrNotFound, r.Msg.GetName())
	}
	delete(s.trust.members, "user."+r.Msg.GetName())
	s.trust.store.SetRevoked(func(string) bool { return true }) // there is one user in the tests that revoke
	return connect.NewResponse(&poddv1.RevokeUserResponse{}), nil
}

func (s *server) Join(_ context.Context, r *connect.Request[poddv1.JoinRequest]) (*connect.Response[poddv1.JoinResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trust.tokens[r.Msg.GetId()]
	switch {
	case t == nil || t.secret != trust.SecretHash(r.Msg.GetSecret()):
		return nil, fmt.Errorf("%w: no such token, or its time is over", pod.ErrUnknownCaller)
	case t.Used:
		return nil, fmt.Errorf("%w: the token was used already", pod.ErrUnknownCaller)
	case t.Kind != r.Msg.GetKind():
		return nil, fmt.Errorf("%w: the token is for a %s", pod.ErrDenied, t.Kind)
	}
	t.Used = true
	return s.issue(r.Msg.GetRequest(), trust.Identity{Kind: trust.KindUser, Name: t.Name, Role: trust.Role(t.Role)})
}

func (s *server) issue(request []byte, who trust.Identity) (*connect.Response[poddv1.JoinResponse], error) {
	chain, leaf, err := s.trust.authority.Issue(request, trust.Profile{Identity: who, Lifetime: s.trust.lifetime})
	if err != nil {
		return nil, err
	}
	s.trust.members[who.Key()] = &poddv1.Member{Kind: string(who.Kind), Name: who.Name, Role: string(who.Role), ExpiresAt: timestamppb.New(leaf.NotAfter)}
	return connect.NewResponse(&poddv1.JoinResponse{Certificate: string(chain), Authority: string(s.trust.store.AuthorityPEM()), Role: string(who.Role)}), nil
}

func (s *server) Renew(ctx context.Context, r *connect.Request[poddv1.RenewRequest]) (*connect.Response[poddv1.RenewResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust.renewals++
	response, err := s.issue(r.Msg.GetRequest(), caller(ctx))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.RenewResponse{Certificate: response.Msg.GetCertificate(), Authority: response.Msg.GetAuthority()}), nil
}

func (s *server) RemoveHost(_ context.Context, r *connect.Request[poddv1.RemoveHostRequest]) (*connect.Response[poddv1.RemoveHostResponse], error) {
	name := r.Msg.GetName()
	if err := checkHost(name); err != nil {
		return nil, err
	}
	if name != "odd" {
		return nil, fmt.Errorf("%w: host %s is alive: stop podd there first", pod.ErrPhase, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust.removed[name] = true
	return connect.NewResponse(&poddv1.RemoveHostResponse{}), nil
}

func (s *server) isRemoved(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trust.removed[host]
}

// renewals is how many certificates were renewed.
func (s *server) renewals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trust.renewals
}
