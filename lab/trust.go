package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

// makeCluster makes the lab's cluster, with the proxy as its first member, as
// `podctl cluster init` does.
func (l *Lab) makeCluster() error {
	_, err := trust.Init(trust.Dir(l.StateDir(Proxy)), trust.InitOptions{
		Identity:  trust.Identity{Kind: trust.KindProxy, Name: Proxy},
		Addresses: []netip.Addr{l.Address(Proxy)},
		Info:      trust.ClusterInfo{Directory: trust.Embedded, Issuers: []string{l.API(Proxy).String()}},
	})
	if err != nil {
		return fmt.Errorf("making the lab's cluster: %w", err)
	}
	return nil
}

// Token makes a token that admits one daemon or user to the lab's cluster. For
// daemons role is empty; name is whose token it is.
func (l *Lab) Token(ctx context.Context, kind trust.Kind, name string, role trust.Role) (string, error) {
	client := l.httpClient(Proxy)
	defer client.CloseIdleConnections()
	response, err := poddv1connect.NewTrustServiceClient(client, daemonURL, api.ClientOptions()).CreateToken(ctx,
		connect.NewRequest(&poddv1.CreateTokenRequest{Kind: string(kind), Name: name, Role: string(role)}))
	if err != nil {
		return "", fmt.Errorf("making a token for %s %s: %w", kind, name, err)
	}
	return response.Msg.GetToken(), nil
}

// admission is how a node's daemon becomes a member of the cluster when it is
// not one yet: arguments for it, and what is to be done when it is ready or has
// failed.
func (l *Lab) admission(ctx context.Context, node string) (arguments []string, done func() error, err error) {
	nothing := func() error { return nil }
	if node == Proxy {
		return nil, nothing, nil
	}
	switch _, err := trust.Open(trust.Dir(l.StateDir(node))); {
	case err == nil:
		return nil, nothing, nil
	case !errors.Is(err, trust.ErrNoMember):
		return nil, nil, err
	}
	token, err := l.Token(ctx, trust.KindHost, node, "")
	// The proxy answers a moment before it is known as the issuer.
	for deadline := time.Now().Add(readyTimeout); errors.Is(err, pod.ErrUnavailable) && ctx.Err() == nil && time.Now().Before(deadline); {
		time.Sleep(readyPoll)
		token, err = l.Token(ctx, trust.KindHost, node, "")
	}
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(l.RunDir(node), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		return nil, nil, fmt.Errorf("keeping the token of host %s: %w", node, err)
	}
	return []string{"--join", "@" + file}, func() error { return os.Remove(file) }, nil
}
