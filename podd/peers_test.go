package podd

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"

	"podd/daemon"
	"podd/trust"
	"podd/trust/trusttest"
)

// testCluster is real credentials, and where the test's daemons listen.
type testCluster struct {
	t      testing.TB
	issuer *trust.Store
	apis   map[string]netip.AddrPort // by server name
}

func newTestCluster(t testing.TB) *testCluster {
	t.Helper()
	return &testCluster{t: t, issuer: trusttest.Cluster(t), apis: map[string]netip.AddrPort{}}
}

func host(name string) trust.Identity { return trust.Identity{Kind: trust.KindHost, Name: name} }

// peers makes a client of the other daemons for somebody.
func (c *testCluster) peers(who trust.Identity) *daemon.Peers {
	c.t.Helper()
	return c.peersOf(c.store(who))
}

func (c *testCluster) store(who trust.Identity) *trust.Store {
	c.t.Helper()
	return trusttest.Member(c.t, c.issuer, who, 0)
}

func (c *testCluster) peersOf(store *trust.Store) *daemon.Peers {
	peers := daemon.NewPeers(store, daemon.NewRevocations(discard()), func(_ context.Context, kind trust.Kind, name string) (netip.AddrPort, error) {
		return c.apis[trust.ServerName(kind, name)], nil
	})
	c.t.Cleanup(peers.CloseIdle)
	return peers
}

// serve serves a handler as a daemon does, until stop or the test's end.
func (c *testCluster) serve(store *trust.Store, handler http.Handler) (stop func()) {
	c.t.Helper()
	audit, err := daemon.OpenAudit(filepath.Join(c.t.TempDir(), "audit.jsonl"), discard())
	if err != nil {
		c.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.apis[store.Identity().ServerName()] = netip.MustParseAddrPort(listener.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	guard := daemon.NewGuard(store, daemon.NewRevocations(discard()), audit, discard())
	go func() { done <- guard.Serve(ctx, listener, handler) }()
	stop = func() {
		cancel()
		<-done
	}
	c.t.Cleanup(func() {
		cancel()
		if err := audit.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return stop
}
