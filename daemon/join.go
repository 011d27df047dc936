package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/google/renameio/v2"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

const (
	// joinTimeout bounds one attempt to join; joinPatience is how long the
	// issuer is waited for, which may just be starting, joinRetry the pause
	// between two attempts.
	joinTimeout  = 10 * time.Second
	joinPatience = 30 * time.Second
	joinRetry    = 500 * time.Millisecond
)

// Applicant is who wants to join a cluster.
type Applicant struct {
	Kind trust.Kind
	Name string
	// Key is what the certificate is to be for. An applicant that did not get
	// the answer can ask again with the same one.
	Key ed25519.PrivateKey
	// Addresses are a daemon's.
	Addresses []netip.Addr
}

// RequestJoin exchanges a token for a certificate, by way of the first of its
// addresses where somebody answers. The error wraps pod.ErrUnavailable when
// nobody does, pod.ErrDenied when the token does not count.
func RequestJoin(ctx context.Context, token trust.Token, a Applicant) (*poddv1.JoinResponse, error) {
	request, err := trust.NewRequest(a.Key)
	if err != nil {
		return nil, err
	}
	message := &poddv1.JoinRequest{Id: token.ID, Secret: token.Secret, Kind: string(a.Kind), Name: a.Name, Request: request}
	for _, address := range a.Addresses {
		message.Addresses = append(message.Addresses, address.String())
	}
	transport := &http.Transport{TLSClientConfig: token.TLS(), DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for deadline := time.Now().Add(joinPatience); ; {
		var unreachable []error
		for _, address := range token.Addresses {
			response, err := joinAt(ctx, client, address, message)
			if err == nil && !token.Matches([]byte(response.GetAuthority())) {
				err = fmt.Errorf("%w: the answer is about another cluster", pod.ErrUntrusted)
			}
			if err == nil {
				return response, nil
			}
			err = fmt.Errorf("joining at %s: %w", address, err)
			if !errors.Is(err, pod.ErrUnavailable) {
				return nil, err
			}
			unreachable = append(unreachable, err)
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(unreachable...)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(append(unreachable, context.Cause(ctx))...)
		case <-time.After(joinRetry):
		}
	}
}

func joinAt(ctx context.Context, client *http.Client, address string, message *poddv1.JoinRequest) (*poddv1.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c := poddv1connect.NewTrustServiceClient(client, "https://"+address, api.ClientOptions(), connect.WithReadMaxBytes(maxJoin))
	response, err := c.Join(ctx, connect.NewRequest(message))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// Membership says who a daemon is in its cluster, or is to be.
type Membership struct {
	StateDir string
	Kind     trust.Kind
	// Name is empty when the credentials decide.
	Name      string
	Addresses []netip.Addr
	// Join is the argument of --join (trust.ReadToken), empty without one.
	// It is only looked at where there are no credentials that are good.
	Join string
	Log  *slog.Logger
}

// Open finds the daemon's credentials, after joining the cluster if it is not a
// member. The error wraps trust.ErrNoMember when it is none and has no token,
// pod.ErrUntrusted when others can read its keys.
func (m Membership) Open(ctx context.Context) (*trust.Store, error) {
	dir := trust.Dir(m.StateDir)
	store, err := trust.Open(dir)
	switch {
	case errors.Is(err, trust.ErrNoMember) && m.Join == "":
		return nil, fmt.Errorf("%w (%s): `podctl cluster init` makes one here, and --join TOKEN joins one: `podctl cluster join-token` on a member prints the token", err, dir)
	case errors.Is(err, trust.ErrNoMember):
		return m.join(ctx)
	case err != nil:
		return nil, err
	}
	if i := store.Identity(); i.Kind != m.Kind || m.Name != "" && i.Name != m.Name {
		return nil, fmt.Errorf("%w: the credentials in %s are those of %s, but this is %s %s: give it its own --state-dir, or remove that directory and join again under the new name",
			pod.ErrConflict, dir, i, m.Kind, m.Name)
	}
	if leaf := store.Leaf(); store.IsIssuer() {
		if err := reissue(store); err != nil {
			return nil, err
		}
	} else if time.Now().After(leaf.NotAfter) {
		if m.Join != "" {
			m.Log.Warn("the certificate has expired; joining again", "expired", leaf.NotAfter)
			return m.join(ctx)
		}
		return nil, fmt.Errorf("%w: the certificate of %s expired at %s, because no issuer was reached in time: make a token with `podctl cluster join-token` and start this daemon once with --join TOKEN",
			pod.ErrUnknownCaller, store.Identity(), leaf.NotAfter.Format(time.RFC3339))
	}
	if m.Join != "" {
		m.Log.Info("this machine is a member of its cluster already; --join is ignored", "identity", store.Identity())
	}
	return store, nil
}

// reissue gives the issuer itself a certificate when its own has expired: nobody
// else could. It is recorded when the directory is open.
func reissue(store *trust.Store) error {
	if time.Now().Before(store.Leaf().NotAfter) {
		return nil
	}
	authority, err := trust.LoadAuthority(store.Dir())
	if err != nil {
		return err
	}
	request, err := trust.NewRequest(store.Key())
	if err != nil {
		return err
	}
	chain, _, err := authority.Issue(request, profileOf(store.Identity(), store.Leaf()))
	if err != nil {
		return err
	}
	return store.Replace(chain)
}

func (m Membership) join(ctx context.Context) (*trust.Store, error) {
	token, err := trust.ReadToken(m.Join, os.Stdin)
	if err != nil {
		return nil, fmt.Errorf("%w, and can't join one: %w", trust.ErrNoMember, err)
	}
	if m.Name, err = Name(m.Name); err != nil {
		return nil, fmt.Errorf("name: %w", err)
	}
	// The key outlives a crash, and with it the right to ask again.
	keyPath := filepath.Join(m.StateDir, "joining.pem")
	key, err := joiningKey(keyPath)
	if err != nil {
		return nil, err
	}
	m.Log.Info("joining the cluster", "kind", m.Kind, "name", m.Name, "addresses", token.Addresses)
	answer, err := RequestJoin(ctx, token, Applicant{Kind: m.Kind, Name: m.Name, Key: key, Addresses: m.Addresses})
	if err != nil {
		return nil, err
	}
	dir := trust.Dir(m.StateDir)
	// What is there has expired.
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("removing old credentials: %w", err)
	}
	store, err := trust.Create(dir, trust.Membership{
		Key: key, Chain: []byte(answer.GetCertificate()), Authority: []byte(answer.GetAuthority()), Secret: answer.GetSecret(),
		Info: trust.ClusterInfo{Directory: answer.GetDirectory(), Issuers: token.Addresses},
	})
	if err != nil {
		return nil, err
	}
	if i := store.Identity(); i.Kind != m.Kind || i.Name != m.Name {
		return nil, fmt.Errorf("%w: the certificate is for %s", pod.ErrUntrusted, i)
	}
	if err := os.Remove(keyPath); err != nil {
		return nil, fmt.Errorf("joining the cluster: %w", err)
	}
	m.Log.Info("joined the cluster", "identity", store.Identity(), "authority", store.Fingerprint())
	return store, nil
}

// joiningKey is the key in the file, a new one if there is none.
func joiningKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newJoiningKey(path)
	}
	if err == nil {
		err = CheckPrivate(path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key to join with: %w", err)
	}
	if block, _ := pem.Decode(data); block != nil {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if key, ok := parsed.(ed25519.PrivateKey); err == nil && ok {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: %s has no key in it: remove it and get a new token", pod.ErrInvalid, path)
}

func newJoiningKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("making the key to join with: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("making the key to join with: %w", err)
	}
	if err := renameio.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("storing the key to join with: %w", err)
	}
	return key, nil
}
