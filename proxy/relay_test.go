package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"podd/daemon"
	"podd/directory"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
)

// meeting is a proxy's relays with a directory, and hosts a, b and c.
type meeting struct {
	t      testing.TB
	dir    *directory.Directory
	relays *relays
	issuer *trust.Store
	hosts  map[string]*daemon.Peers
	stores map[string]*trust.Store
	find   daemon.FindPeer // the proxy
	stop   context.CancelFunc
}

func newMeeting(t testing.TB) *meeting {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := directory.StartEmbedded(t.Context(), directory.EmbeddedOptions{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Unsynced: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	dir, err := directory.Open(t.Context(), directory.Options{Endpoints: []string{e.Endpoint()}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	ctx, stop := context.WithCancel(context.Background())
	m := &meeting{t: t, dir: dir, issuer: trusttest.Cluster(t), hosts: map[string]*daemon.Peers{}, stores: map[string]*trust.Store{}, stop: stop}
	m.relays = newRelays(ctx, dir, newMetrics(), log)
	audit, err := daemon.OpenAudit(filepath.Join(t.TempDir(), "audit.jsonl"), log)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.find = func(context.Context, trust.Kind, string) (netip.AddrPort, error) {
		return netip.MustParseAddrPort(l.Addr().String()), nil
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+daemon.RelayPath, m.relays)
	guard := daemon.NewGuard(m.issuer, daemon.NewRevocations(log), audit, log)
	done := make(chan error, 1)
	go func() { done <- guard.Serve(ctx, l, mux) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		m.relays.close()
		if n := m.open(); n != 0 {
			t.Errorf("%d relays are left", n)
		}
		if err := audit.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"a", "b", "c"} {
		m.stores[name] = trusttest.Member(t, m.issuer, trust.Identity{Kind: trust.KindHost, Name: name}, 0)
		m.hosts[name] = daemon.NewPeers(m.stores[name], daemon.NewRevocations(log), m.find)
		t.Cleanup(m.hosts[name].CloseIdle)
	}
	return m
}

// ask makes a request from a to b.
func (m *meeting) ask(id, move string) {
	m.t.Helper()
	if err := m.dir.AskRelay(m.t.Context(), directory.Relay{ID: id, From: "a", To: "b", Proxy: "proxy", Move: move}, time.Minute); err != nil {
		m.t.Fatal(err)
	}
}

// joined is what comes of a host that goes to the proxy.
type joined struct {
	conn net.Conn
	err  error
}

func (m *meeting) join(host, id string) <-chan joined {
	result := make(chan joined, 1)
	go func() {
		conn, err := m.hosts[host].JoinRelay(m.t.Context(), "proxy", id)
		result <- joined{conn, err}
	}()
	return result
}

// connect lets both hosts of a request meet.
func (m *meeting) connect(id string) (a, b net.Conn) {
	m.t.Helper()
	first, second := m.join("b", id), m.join("a", id)
	for host, result := range map[*net.Conn]<-chan joined{&b: first, &a: second} {
		r := <-result
		if r.err != nil {
			m.t.Fatal(r.err)
		}
		m.t.Cleanup(func() { r.conn.Close() })
		*host = r.conn
	}
	return a, b
}

// refused requires that a host is not connected, for a reason.
func (m *meeting) refused(host, id, reason string) {
	m.t.Helper()
	if r := <-m.join(host, id); r.err == nil || !errors.Is(r.err, pod.ErrUnavailable) || !strings.Contains(r.err.Error(), reason) {
		m.t.Errorf("host %s with request %s: got %v; want %q", host, id, r.err, reason)
	}
}

func (m *meeting) await(what string, holds func() bool) {
	m.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			m.t.Fatalf("not in time: %s", what)
		}
	}
}

// open is how many relays there are.
func (m *meeting) open() int {
	m.relays.mu.Lock()
	defer m.relays.mu.Unlock()
	return len(m.relays.open)
}

// metric is a line of /metrics.
func (m *meeting) metric(line string) bool {
	recorder := httptest.NewRecorder()
	promhttp.HandlerFor(m.relays.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return slices.Contains(strings.Split(recorder.Body.String(), "\n"), line)
}

// tapped is a connection that keeps what goes through it.
type tapped struct {
	net.Conn
	mu   sync.Mutex
	seen []byte
}

func (t *tapped) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.keep(p[:n])
	return n, err
}

func (t *tapped) Write(p []byte) (int, error) {
	t.keep(p)
	return t.Conn.Write(p)
}

func (t *tapped) keep(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = append(t.seen, p...)
}

// TestRelayCarries sends much in both directions at once, and each end sees the
// other's.
func TestRelayCarries(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	a, b := m.connect("x")
	m.refused("a", "x", "in use")
	m.refused("b", "x", "in use")
	there, back := bytes.Repeat([]byte("there and "), 500_000), bytes.Repeat([]byte("back again"), 300_000)
	var wait sync.WaitGroup
	for _, way := range []struct {
		from, to net.Conn
		data     []byte
	}{{a, b, there}, {b, a, back}} {
		wait.Go(func() {
			if _, err := way.from.Write(way.data); err != nil {
				t.Error(err)
			}
		})
		wait.Go(func() {
			got := make([]byte, len(way.data))
			if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, way.data) {
				t.Errorf("what arrives is not what was sent: %v", err)
			}
		})
	}
	wait.Wait()
	for _, line := range []string{"podproxy_relays 1", "podproxy_relay_bytes_total 8e+06", `podproxy_relays_total{outcome="refused"} 2`} {
		m.await(line, func() bool { return m.metric(line) })
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	m.await("the relay ends when a host does", func() bool { return m.open() == 0 })
}

// TestRelayLastWords: what a host says before it ends the connection arrives,
// though the other one has much to say meanwhile.
func TestRelayLastWords(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	a, b := m.connect("x")
	go func() {
		for {
			if _, err := a.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	if _, err := io.ReadFull(b, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(b, "no space"); err != nil {
		t.Fatal(err)
	}
	b.Close()
	got := make([]byte, 8)
	if _, err := io.ReadFull(a, got); err != nil || string(got) != "no space" {
		t.Errorf("the last words are %q, %v", got, err)
	}
	m.await("the relay ends", func() bool { return m.open() == 0 })
}

// TestRelayIsSealed: the hosts speak TLS with each other through what the proxy
// carries, and nothing in that is to be read.
func TestRelayIsSealed(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	a, b := m.connect("x")
	tap := &tapped{Conn: a}
	secret := bytes.Repeat([]byte("SECRET-IN-MEMORY"), 1<<14)
	served := make(chan error, 1)
	go func() {
		server := tls.Server(b, m.stores["b"].ServerTLS())
		got := make([]byte, len(secret))
		_, err := io.ReadFull(server, got)
		state := server.ConnectionState()
		if peer, err2 := m.stores["b"].Peer(&state); err == nil && (err2 != nil || peer.Name != "a" || !bytes.Equal(got, secret)) {
			err = fmt.Errorf("from %v: %w", peer, err2)
		}
		served <- err
	}()
	conn, err := m.dialThrough(tap)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(secret); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	tap.mu.Lock()
	defer tap.mu.Unlock()
	if len(tap.seen) < len(secret) || bytes.Contains(tap.seen, []byte("SECRET")) {
		t.Errorf("of %d bytes on the way some are to be read", len(tap.seen))
	}
}

// TestRelayOfALiar connects a host with another one than it wants: it notices
// before it has said anything.
func TestRelayOfALiar(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	a, b := m.connect("x")
	served := make(chan error, 1)
	go func() {
		server := tls.Server(b, m.stores["c"].ServerTLS())
		_, err := server.Read(make([]byte, 1))
		served <- err
	}()
	if _, err := m.dialThrough(a); !errors.Is(err, pod.ErrUntrusted) || !strings.Contains(err.Error(), "host b at the proxy") {
		t.Errorf("got %v", err)
	}
	if err := <-served; err == nil {
		t.Error("host a has said something to host c")
	}
}

// dialThrough is how host a dials host b over a connection.
func (m *meeting) dialThrough(raw net.Conn) (*tls.Conn, error) {
	return m.hosts["a"].Through(func(context.Context, trust.Kind, string) (net.Conn, string, error) {
		return raw, "the proxy", nil
	}, 20*time.Second).Dial(m.t.Context(), trust.KindHost, "b", "http/1.1")
}

// TestRelayRefuses: nobody is connected whom a request does not name, nor for a
// move that does not go on between these two hosts by this strategy.
func TestRelayRefuses(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	m.refused("c", "x", "not about host c")
	m.refused("a", "none", "404")
	m.ask("forgotten", "no such move")
	m.refused("a", "forgotten", "404")
	m.register()
	plain, own := m.begin("plain", pod.StrategyStopCopy), m.begin("own", pod.StrategyCheckpointServer)
	m.ask("plain", plain.ID)
	m.refused("a", "plain", "by strategy stop-copy")
	foreign := directory.Relay{ID: "foreign", From: "c", To: "b", Move: own.ID}
	if err := m.dir.AskRelay(t.Context(), foreign, time.Minute); err != nil {
		t.Fatal(err)
	}
	m.refused("c", "foreign", "goes from host a to b")
	m.ask("own", own.ID)
	m.connect("own")
	m.ask("again", own.ID)
	m.refused("a", "again", "has a relay already")
	if err := m.dir.AbortMove(t.Context(), own.ID, pod.StagePresync, errors.New("for the test")); err != nil {
		t.Fatal(err)
	}
	m.refused("a", "again", "is aborted")

	for who, client := range map[string]*daemon.Peers{
		"a user": m.peers(trust.Identity{Kind: trust.KindUser, Name: "ada", Role: trust.RoleAdmin}), "a proxy": m.peers(trust.Identity{Kind: trust.KindProxy, Name: "proxy2"}),
	} {
		if _, err := client.JoinRelay(t.Context(), "proxy", "x"); err == nil || !strings.Contains(err.Error(), "hosts only") {
			t.Errorf("%s: %v", who, err)
		}
	}
	// An ordinary request is no relay.
	response, err := m.hosts["a"].Client().Post(daemon.PeerURL(trust.KindProxy, "proxy")+daemon.RelayPath+"?id=x", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("an ordinary request: %s", response.Status)
	}
}

// TestRelayWaits: the first host does not wait for ever, and not for who has gone.
func TestRelayWaits(t *testing.T) {
	m := newMeeting(t)
	m.relays.patience = 50 * time.Millisecond
	m.ask("x", "")
	m.refused("a", "x", "host b did not come within 50ms")
	m.refused("b", "x", "host a did not come")
	m.relays.patience = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := m.hosts["a"].JoinRelay(ctx, "proxy", "x")
		left <- err
	}()
	m.await("host a waits", func() bool { return m.open() == 1 })
	m.refused("a", "x", "waits for request x already")
	cancel()
	if err := <-left; err == nil {
		t.Error("a host that was told to go waited on")
	}
	m.await("nobody waits", func() bool { return m.open() == 0 })
	m.connect("x")
}

// TestRelayLimits: one host may not take all relays there are, and what is no
// move may not carry much.
func TestRelayLimits(t *testing.T) {
	m := newMeeting(t)
	m.relays.patience = time.Hour
	for i := range maxRelaysFrom {
		id := fmt.Sprint("waits", i)
		m.ask(id, "")
		m.join("a", id)
	}
	m.await("all wait", func() bool { return m.open() == maxRelaysFrom })
	m.ask("more", "")
	m.refused("b", "more", fmt.Sprintf("%d of them for host a", maxRelaysFrom))

	m = newMeeting(t)
	m.ask("x", "")
	a, b := m.connect("x")
	go func() { _, _ = io.Copy(io.Discard, b) }()
	var err error
	for sent := 0; err == nil; sent += 1 << 20 {
		if sent > 2*maxQuestions {
			t.Fatal("nobody stops what is no move")
		}
		_, err = a.Write(make([]byte, 1<<20))
	}
	m.await("the relay ends", func() bool { return m.open() == 0 })
}

// TestRelayStops: relays end with podproxy, and no others begin.
func TestRelayStops(t *testing.T) {
	m := newMeeting(t)
	m.ask("x", "")
	m.ask("waits", "")
	a, b := m.connect("x")
	waiting := m.join("a", "waits")
	m.await("host a waits", func() bool { return m.open() == 2 })
	m.stop()
	for _, conn := range []net.Conn{a, b} {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a relay goes on")
		}
	}
	if r := <-waiting; r.err == nil {
		t.Error("a host waited on")
	}
	m.relays.close()
	if _, err := m.relays.enter(&directory.Relay{ID: "late", From: "a", To: "b"}, "a"); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("a host that comes too late: %v", err)
	}
}

func (m *meeting) peers(who trust.Identity) *daemon.Peers {
	peers := daemon.NewPeers(trusttest.Member(m.t, m.issuer, who, 0), daemon.NewRevocations(slog.New(slog.DiscardHandler)), m.find)
	m.t.Cleanup(peers.CloseIdle)
	return peers
}

// register makes a and b live hosts of the directory.
func (m *meeting) register() {
	m.t.Helper()
	prefixes := directory.Cluster{Public: netip.MustParsePrefix("198.18.0.0/16"), Virtual: netip.MustParsePrefix("100.64.0.0/16"), Zone: "pods.internal"}
	if err := m.dir.InitCluster(m.t.Context(), prefixes); err != nil {
		m.t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		registration, err := m.dir.RegisterHost(m.t.Context(), pod.Host{Name: name, Physical: netip.AddrFrom4([4]byte{10, 10, byte(i), 2})})
		if err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(registration.Abandon)
	}
}

// begin opens the move of a pod of that name from a to b.
func (m *meeting) begin(name string, strategy pod.Strategy) *pod.Move {
	m.t.Helper()
	if _, err := m.dir.CreatePod(m.t.Context(), pod.Spec{Name: name, Command: []string{"sleep", "inf"}}, "a"); err != nil {
		m.t.Fatal(err)
	}
	if err := m.dir.UpdatePod(m.t.Context(), name, func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		m.t.Fatal(err)
	}
	move, err := m.dir.BeginMove(m.t.Context(), name, "b", strategy)
	if err != nil {
		m.t.Fatal(err)
	}
	return move
}
