package podd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"podd/daemon"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

// TestAdvice: only who could not reach a host is told of another way.
func TestAdvice(t *testing.T) {
	d := &Daemon{settings: settings{Config: Config{Name: "a"}}}
	const advice = "if hosts a and b can't reach each other, but both the proxy, move the pod with --strategy checkpoint-server"
	for _, test := range []struct {
		err      error
		strategy pod.Strategy
		advised  bool
	}{
		{fmt.Errorf("%w: connecting to host b", pod.ErrUnavailable), pod.StrategyAuto, true},
		{context.DeadlineExceeded, pod.StrategyStopCopy, true},
		{pod.ErrUntrusted, pod.StrategyAuto, false},
		{pod.ErrBlocked, pod.StrategyAuto, false},
		{pod.ErrUnavailable, pod.StrategyCheckpointServer, false},
	} {
		err := d.advise(test.err, moveOrder{target: "b", strategy: test.strategy})
		if !errors.Is(err, test.err) || strings.Contains(err.Error(), advice) != test.advised {
			t.Errorf("%v by %s: %v", test.err, test.strategy, err)
		}
	}
}

// TestRelayRequests: a host that wants a connection through the proxy leaves its
// request in the directory until it has one or has given up, and the other host
// goes to the proxy for it, once.
func TestRelayRequests(t *testing.T) {
	c := newTestCluster(t)
	dir := newDirectory(t)
	registration, err := dir.RegisterProxy(t.Context(), pod.Proxy{Name: "proxy"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registration.Abandon)
	type visit struct{ host, id string }
	visits := make(chan visit, 10)
	proceed := make(chan struct{})
	c.serve(c.issuer, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, err := daemon.HostFrom(r)
		if err != nil {
			t.Error(err)
		}
		visits <- visit{host, r.URL.Query().Get(daemon.RelayQuery)}
		<-proceed
		http.Error(w, "not today", http.StatusServiceUnavailable)
	}))
	hosts := map[string]*Daemon{}
	for _, name := range []string{"a", "b"} {
		hosts[name], _ = testDaemon(t, name, dir)
		hosts[name].cluster = &daemon.Cluster{Peers: c.peers(host(name))}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	fetching := make(chan struct{})
	go func() {
		defer close(fetching)
		hosts["b"].fetchRelayed(ctx, daemon.NewHandedListener(&net.TCPAddr{}))
	}()
	failed := make(chan error, 1)
	go func() {
		peers, done := hosts["a"].peersFor(pod.StrategyCheckpointServer, "m")
		defer done()
		_, err := peers.Dial(t.Context(), trust.KindHost, "b", "h2")
		failed <- err
	}()
	first, second := <-visits, <-visits
	if first.id != second.id || first.host == second.host {
		t.Errorf("the proxy saw %+v and %+v", first, second)
	}
	want := directory.Relay{ID: first.id, From: "a", To: "b", Proxy: "proxy", Move: "m"}
	if got, err := dir.Relay(t.Context(), first.id); err != nil || *got != want {
		t.Errorf("the request is %+v, %v; want %+v", got, err, want)
	}
	// Another request does not make b go for the first one again.
	if err := dir.AskRelay(t.Context(), directory.Relay{ID: "other", From: "a", To: "b", Proxy: "proxy"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if v := <-visits; v != (visit{"b", "other"}) {
		t.Errorf("the proxy saw %+v", v)
	}
	close(proceed)
	if err := <-failed; !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "reaching host b through proxy proxy") || !strings.Contains(err.Error(), "not today") {
		t.Errorf("got %v", err)
	}
	if _, err := dir.Relay(t.Context(), first.id); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("the request is left: %v", err)
	}
	if peers, _ := hosts["a"].peersFor(pod.StrategyStopCopy, "m"); peers != hosts["a"].cluster.Peers {
		t.Error("a plain move goes through the proxy")
	}
	stop()
	<-fetching
}
