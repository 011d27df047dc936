package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"podd/pod"
)

// cluster is the one every test uses unless it says otherwise.
var cluster = Cluster{
	Public:  netip.MustParsePrefix("198.18.0.0/16"),
	Virtual: netip.MustParsePrefix("100.64.0.0/16"),
	Zone:    "pods.internal",
}

// testLog shows in a test's output what only the log is told.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// start runs a real etcd in a directory of the test's own.
func start(t *testing.T) *Embedded {
	t.Helper()
	return startIn(t, t.TempDir(), "127.0.0.1:0")
}

func startIn(t *testing.T, dir, listen string) *Embedded {
	t.Helper()
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{DataDir: dir, Listen: listen, Unsynced: true, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// open is a client whose leases end soon when nobody keeps them.
func open(t *testing.T, e *Embedded) *Directory {
	t.Helper()
	return openLeasing(t, e, 2*time.Second)
}

// openLeasing is open for tests that are not about hosts that end: a machine that
// is slow for seconds must not cost them those they registered.
func openLeasing(t *testing.T, e *Embedded, ttl time.Duration) *Directory {
	t.Helper()
	d, err := Open(t.Context(), Options{Endpoints: []string{e.Endpoint()}, Log: testLog(t), LeaseTTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newDirectory is a directory with a cluster and the hosts a, b and c, alive.
func newDirectory(t *testing.T) *Directory {
	t.Helper()
	d := openLeasing(t, start(t), time.Minute)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b", "c"} {
		register(t, d, host(name, i+1))
	}
	return d
}

func host(name string, n int) pod.Host {
	addr := netip.AddrFrom4([4]byte{10, 10, byte(n), 2})
	return pod.Host{Name: name, Physical: addr, API: netip.AddrPortFrom(addr, 7443)}
}

func register(t *testing.T, d *Directory, h pod.Host) *Registration {
	t.Helper()
	r, err := d.RegisterHost(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, pod.ErrUnavailable) {
			t.Error(err)
		}
	})
	return r
}

func spec(name string) pod.Spec {
	return pod.Spec{Name: name, Command: []string{"sleep", "inf"}}
}

func create(t *testing.T, d *Directory, name, host string) *pod.Pod {
	t.Helper()
	p, err := d.CreatePod(t.Context(), spec(name), host)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// running creates a pod and says that it runs.
func running(t *testing.T, d *Directory, name, host string) *pod.Pod {
	t.Helper()
	p := create(t, d, name, host)
	if err := d.UpdatePod(t.Context(), name, func(p *pod.Pod) error {
		p.Phase = pod.PhaseRunning
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

// next receives views until one satisfies cond.
func next(t *testing.T, views <-chan *View, what string, cond func(*View) bool) *View {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case v, ok := <-views:
			if !ok {
				t.Fatalf("the watch ended before it showed %s", what)
			}
			if cond(v) {
				return v
			}
		case <-deadline:
			t.Fatalf("the watch never showed %s", what)
		}
	}
}

func wantErr(t *testing.T, err, want error, text ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
	for _, s := range text {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func TestInitClusterOnce(t *testing.T) {
	d := open(t, start(t))
	_, err := d.Cluster(t.Context())
	wantErr(t, err, pod.ErrUnavailable, "no proxy")
	_, err = d.CreatePod(t.Context(), spec("x"), "a")
	wantErr(t, err, pod.ErrUnavailable, "no proxy")

	asked := cluster
	asked.Zone = "Pods.Internal."
	if err := d.InitCluster(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatalf("the same again: %v", err)
	}
	other := cluster
	other.Zone = "other.internal"
	wantErr(t, d.InitCluster(t.Context(), other), pod.ErrConflict, "pods.internal", "other.internal")
	got, err := d.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if *got != cluster {
		t.Errorf("cluster is %+v, want %+v", *got, cluster)
	}
}

func TestClusterValidate(t *testing.T) {
	p := netip.MustParsePrefix
	for name, c := range map[string]Cluster{
		"no prefix":         {Virtual: p("100.64.0.0/16"), Zone: "z"},
		"lengths differ":    {Public: p("198.18.0.0/15"), Virtual: p("100.64.0.0/16"), Zone: "z"},
		"overlap":           {Public: p("100.64.0.0/16"), Virtual: p("100.64.0.0/16"), Zone: "z"},
		"IPv6":              {Public: p("fd00::/112"), Virtual: p("fd01::/112"), Zone: "z"},
		"too narrow":        {Public: p("198.18.0.0/31"), Virtual: p("100.64.0.0/31"), Zone: "z"},
		"has the gateway":   {Public: p("198.18.0.0/16"), Virtual: p("169.254.0.0/16"), Zone: "z"},
		"no zone":           {Public: p("198.18.0.0/16"), Virtual: p("100.64.0.0/16")},
		"bad zone":          {Public: p("198.18.0.0/16"), Virtual: p("100.64.0.0/16"), Zone: "a..b"},
		"zone too long":     {Public: p("198.18.0.0/16"), Virtual: p("100.64.0.0/16"), Zone: strings.Repeat("abcdefghi.", 20) + "z"},
		"zone with a space": {Public: p("198.18.0.0/16"), Virtual: p("100.64.0.0/16"), Zone: "a b"},
	} {
		if err := c.Validate(); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: error is %v, want %v", name, err, pod.ErrInvalid)
		}
	}
}

func TestUnreachable(t *testing.T) {
	const nobody = "http://127.0.0.1:1"
	began := time.Now()
	_, err := Open(t.Context(), Options{Endpoints: []string{nobody}, Timeout: 300 * time.Millisecond, Log: testLog(t)})
	wantErr(t, err, pod.ErrUnavailable, nobody)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s to find out", took)
	}
}

func TestUnreachableLater(t *testing.T) {
	e := start(t)
	d, err := Open(t.Context(), Options{Endpoints: []string{e.Endpoint()}, Timeout: 300 * time.Millisecond, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for what, try := range map[string]func(context.Context) error{
		"Pod":       func(ctx context.Context) error { _, err := d.Pod(ctx, "x"); return err },
		"Pods":      func(ctx context.Context) error { _, err := d.Pods(ctx); return err },
		"Hosts":     func(ctx context.Context) error { _, err := d.Hosts(ctx); return err },
		"Moves":     func(ctx context.Context) error { _, err := d.Moves(ctx); return err },
		"View":      func(ctx context.Context) error { _, err := d.View(ctx); return err },
		"Cluster":   func(ctx context.Context) error { _, err := d.Cluster(ctx); return err },
		"CreatePod": func(ctx context.Context) error { _, err := d.CreatePod(ctx, spec("x"), "a"); return err },
		"BeginMove": func(ctx context.Context) error { _, err := d.BeginMove(ctx, "x", "a", pod.StrategyAuto); return err },
		"Commit":    func(ctx context.Context) error { return d.CommitMove(ctx, "x") },
		"Abort":     func(ctx context.Context) error { return d.AbortMove(ctx, "x", pod.StageDump, nil) },
		"Register":  func(ctx context.Context) error { _, err := d.RegisterHost(ctx, host("a", 1)); return err },
	} {
		wait.Go(func() {
			err := try(t.Context())
			if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), e.Endpoint()) {
				t.Errorf("%s: error is %v, want %v with the endpoint", what, err, pod.ErrUnavailable)
			}
		})
	}
	wait.Wait()
}

func TestDataDirInUse(t *testing.T) {
	dir := t.TempDir()
	startIn(t, dir, "127.0.0.1:0")
	_, err := StartEmbedded(t.Context(), EmbeddedOptions{DataDir: dir, Listen: "127.0.0.1:0", Log: testLog(t)})
	wantErr(t, err, pod.ErrConflict, dir)
}

func TestPortInUse(t *testing.T) {
	e := start(t)
	_, err := StartEmbedded(t.Context(), EmbeddedOptions{DataDir: t.TempDir(), Listen: strings.TrimPrefix(e.Endpoint(), "http://"), Log: testLog(t)})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("error is %v, want address already in use", err)
	}
}
