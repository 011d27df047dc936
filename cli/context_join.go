package cli

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

// renewTimeout bounds how much longer a command takes because a certificate is
// renewed.
const renewTimeout = 3 * time.Second

// redeem exchanges a user's token for a certificate, at the first of the
// token's daemons that answers. Asking twice does no harm: the token belongs to
// the first key that comes with it.
func redeem(ctx context.Context, token trust.Token) (trust.Membership, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return trust.Membership{}, fmt.Errorf("making a key: %w", err)
	}
	request, err := trust.NewRequest(key)
	if err != nil {
		return trust.Membership{}, err
	}
	var failures []error
	for _, at := range token.Addresses {
		response, err := join(ctx, token, address{"tcp", at}, request)
		if err == nil {
			if !token.Matches([]byte(response.GetAuthority())) {
				return trust.Membership{}, fmt.Errorf("%w: %s answers for another cluster than the token's", pod.ErrUntrusted, at)
			}
			return trust.Membership{Key: key, Chain: []byte(response.GetCertificate()), Authority: []byte(response.GetAuthority())}, nil
		}
		failures = append(failures, err)
		if !errors.Is(err, pod.ErrUnavailable) {
			break // an answer, and the others would say the same
		}
	}
	return trust.Membership{}, errors.Join(failures...)
}

// join asks one daemon.
func join(ctx context.Context, token trust.Token, to address, request []byte) (*poddv1.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	transport := newTransport(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialTLS(ctx, to, token.TLS())
	})
	defer transport.CloseIdleConnections()
	client := poddv1connect.NewTrustServiceClient(joiner{&http.Client{Transport: transport}}, baseURL, api.ClientOptions())
	response, err := client.Join(ctx, connect.NewRequest(&poddv1.JoinRequest{
		Id: token.ID, Secret: token.Secret, Kind: string(trust.KindUser), Request: request,
	}))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// storeCredentials keeps what a context shows to daemons, in place of what it
// may have shown before.
func storeCredentials(context string, m trust.Membership) (*trust.Store, error) {
	dir, err := credentialsDir(context)
	if err != nil {
		return nil, err
	}
	// A dot is in no context's name.
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return nil, err
	}
	store, err := trust.Create(fresh, m)
	if err != nil {
		return nil, err
	}
	if kind := store.Identity().Kind; kind != trust.KindUser {
		return nil, errors.Join(fmt.Errorf("%w: the token is for a %s, not for a user", pod.ErrInvalid, kind), os.RemoveAll(fresh))
	}
	if err := removeCredentials(context); err != nil {
		return nil, err
	}
	return store, os.Rename(fresh, dir)
}

// removeCredentials deletes the keys of a context, if it has any.
func removeCredentials(context string) error {
	dir, err := credentialsDir(context)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("deleting the keys of context %s: %w", context, err)
	}
	return nil
}

// renew replaces the context's certificate when half of its life is over. That
// it fails is no matter: the next command tries again.
func (c *client) renew(ctx context.Context) {
	store := c.target.store
	if store == nil || !c.reached.Load() || c.refused.Load() || time.Now().Before(store.RenewAt()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	request, err := trust.NewRequest(store.Key())
	if err != nil {
		return
	}
	response, err := c.trust.Renew(ctx, connect.NewRequest(&poddv1.RenewRequest{Request: request}))
	if err != nil {
		return
	}
	_ = store.Replace([]byte(response.Msg.GetCertificate()))
}
