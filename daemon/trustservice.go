package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	poddv1 "podd/api/podd/v1"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

const (
	// maxTokenLifetime bounds for how long a token waits to be used.
	maxTokenLifetime = 7 * 24 * time.Hour
	// maxTokenAddresses bounds how many addresses a token carries.
	maxTokenAddresses = 8
)

// trustService implements poddv1connect.TrustServiceHandler, the same way in
// every daemon.
type trustService struct {
	store  *trust.Store
	dir    *directory.Directory
	issuer *issuer // nil where the authority is not
}

// daemons are the API addresses of the cluster's daemons: the issuers, and the
// live podds.
func (s *trustService) daemons(ctx context.Context) (issuers, podds []netip.AddrPort, err error) {
	hosts, err := s.dir.Hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	proxies, err := s.dir.Proxies(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range proxies {
		if p.Issuer {
			issuers = append(issuers, p.API)
		}
	}
	if s.issuer != nil {
		// It may not have registered yet.
		for _, text := range s.store.Info().Issuers {
			if a, err := netip.ParseAddrPort(text); err == nil && !slices.Contains(issuers, a) {
				issuers = append(issuers, a)
			}
		}
	}
	for _, h := range hosts {
		if h.Issuer {
			issuers = append(issuers, h.API)
		}
		if h.Alive {
			podds = append(podds, h.API)
		}
	}
	return issuers, podds, nil
}

func (s *trustService) GetTrust(ctx context.Context, _ *connect.Request[poddv1.GetTrustRequest]) (*connect.Response[poddv1.GetTrustResponse], error) {
	issuers, _, err := s.daemons(ctx)
	if err != nil {
		return nil, err
	}
	caller, _ := CallerFrom(ctx)
	response := &poddv1.GetTrustResponse{
		Authority: string(s.store.AuthorityPEM()), Recipient: s.store.Recipient(), You: caller.String(), YourRole: string(caller.Role),
	}
	for _, address := range issuers {
		response.Issuers = append(response.Issuers, address.String())
	}
	return connect.NewResponse(response), nil
}

func (s *trustService) CreateToken(ctx context.Context, r *connect.Request[poddv1.CreateTokenRequest]) (*connect.Response[poddv1.CreateTokenResponse], error) {
	kind, role := trust.Kind(r.Msg.GetKind()), trust.Role(r.Msg.GetRole())
	name := r.Msg.GetName()
	if name == "" && kind.Daemon() {
		name = "any" // for the check only
	}
	if err := (trust.Identity{Kind: kind, Name: name, Role: role}).Validate(); err != nil {
		return nil, err
	}
	if kind == trust.KindLocal {
		return nil, fmt.Errorf("%w: a local caller needs no token", pod.ErrInvalid)
	}
	lifetime := trust.TokenLifetime
	if l := r.Msg.GetLifetime(); l != nil {
		lifetime = l.AsDuration()
	}
	if lifetime < time.Second || lifetime > maxTokenLifetime {
		return nil, fmt.Errorf("%w: lifetime %s: want one second to %s", pod.ErrInvalid, lifetime, maxTokenLifetime)
	}
	issuers, podds, err := s.daemons(ctx)
	if err != nil {
		return nil, err
	}
	if len(issuers) == 0 {
		return nil, fmt.Errorf("%w: no daemon that has the cluster's authority has joined", pod.ErrUnavailable)
	}
	addresses := issuers
	if kind == trust.KindUser {
		// Where pods are asked for; any of them passes the joining on.
		addresses = append(podds[:min(len(podds), max(0, maxTokenAddresses-len(issuers)))], issuers...)
	}
	token, err := s.store.NewToken(texts(addresses))
	if err != nil {
		return nil, err
	}
	caller, _ := CallerFrom(ctx)
	expires := time.Now().Add(lifetime)
	err = s.dir.CreateToken(ctx, directory.TokenRecord{
		ID: token.ID, Kind: kind, Name: r.Msg.GetName(), Role: role, SecretHash: trust.SecretHash(token.Secret),
		CreatedBy: caller.String(), ExpiresAt: expires.UTC(),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.CreateTokenResponse{Token: token.String(), ExpiresAt: timestamppb.New(expires)}), nil
}

func texts(addresses []netip.AddrPort) []string {
	var out []string
	for _, a := range addresses {
		if !slices.Contains(out, a.String()) {
			out = append(out, a.String())
		}
	}
	return out
}

func (s *trustService) ListTokens(ctx context.Context, _ *connect.Request[poddv1.ListTokensRequest]) (*connect.Response[poddv1.ListTokensResponse], error) {
	tokens, err := s.dir.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	response := &poddv1.ListTokensResponse{}
	for _, t := range tokens {
		response.Tokens = append(response.Tokens, &poddv1.Token{
			Id: t.ID, Kind: string(t.Kind), Name: t.Name, Role: string(t.Role), CreatedBy: t.CreatedBy,
			ExpiresAt: timestamppb.New(t.ExpiresAt), Used: t.UsedBy != "",
		})
	}
	return connect.NewResponse(response), nil
}

func (s *trustService) DeleteToken(ctx context.Context, r *connect.Request[poddv1.DeleteTokenRequest]) (*connect.Response[poddv1.DeleteTokenResponse], error) {
	if err := s.dir.DeleteToken(ctx, r.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.DeleteTokenResponse{}), nil
}

func (s *trustService) ListMembers(ctx context.Context, _ *connect.Request[poddv1.ListMembersRequest]) (*connect.Response[poddv1.ListMembersResponse], error) {
	members, err := s.dir.Members(ctx)
	if err != nil {
		return nil, err
	}
	response := &poddv1.ListMembersResponse{}
	for _, m := range members {
		response.Members = append(response.Members, &poddv1.Member{
			Kind: string(m.Kind), Name: m.Name, Role: string(m.Role), ExpiresAt: timestamppb.New(m.ExpiresAt()),
		})
	}
	return connect.NewResponse(response), nil
}

func (s *trustService) RevokeUser(ctx context.Context, r *connect.Request[poddv1.RevokeUserRequest]) (*connect.Response[poddv1.RevokeUserResponse], error) {
	if err := s.dir.Revoke(ctx, trust.Identity{Kind: trust.KindUser, Name: r.Msg.GetName()}); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.RevokeUserResponse{}), nil
}

func (s *trustService) Join(ctx context.Context, r *connect.Request[poddv1.JoinRequest]) (*connect.Response[poddv1.JoinResponse], error) {
	if s.issuer == nil {
		return nil, s.notIssuer(ctx)
	}
	response, err := s.issuer.join(ctx, r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

func (s *trustService) Renew(ctx context.Context, r *connect.Request[poddv1.RenewRequest]) (*connect.Response[poddv1.RenewResponse], error) {
	if s.issuer == nil {
		return nil, s.notIssuer(ctx)
	}
	response, err := s.issuer.renew(ctx, certificateFrom(ctx), r.Msg.GetRequest())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// notIssuer says whom to ask instead.
func (s *trustService) notIssuer(ctx context.Context) error {
	issuers, _, err := s.daemons(ctx)
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s does not have the cluster's authority; ask the daemon at %s", pod.ErrUnavailable,
		s.store.Identity(), strings.Join(texts(issuers), " or "))
}
