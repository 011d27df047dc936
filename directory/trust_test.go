package directory

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
)

var (
	hostA = trust.Identity{Kind: trust.KindHost, Name: "a"}
	jane  = trust.Identity{Kind: trust.KindUser, Name: "jane", Role: trust.RoleViewer}
)

// startSecure runs an etcd that speaks TLS.
func startSecure(t testing.TB, credentials *trust.Store) *Embedded {
	t.Helper()
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Credentials: credentials, Unsynced: true, Log: slog.New(slog.DiscardHandler)})
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

func openSecure(t testing.TB, e *Embedded, credentials *trust.Store) (*Directory, error) {
	t.Helper()
	return openWithin(t, e, credentials, 10*time.Second)
}

// openWithin is openSecure for who is to be refused: that takes all the time.
func openWithin(t testing.TB, e *Embedded, credentials *trust.Store, timeout time.Duration) (*Directory, error) {
	t.Helper()
	d, err := Open(t.Context(), Options{
		Endpoints: []string{e.Endpoint()}, TLS: credentials.DirectoryTLS(), Timeout: timeout,
	})
	if err == nil {
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return d, err
}

func TestSecureDirectory(t *testing.T) {
	proxy := trusttest.Cluster(t)
	e := startSecure(t, proxy)
	if !strings.HasPrefix(e.Endpoint(), "https://") {
		t.Fatalf("the endpoint is %s", e.Endpoint())
	}
	for _, store := range []*trust.Store{proxy, trusttest.Member(t, proxy, hostA, 0)} {
		if _, err := openSecure(t, e, store); err != nil {
			t.Errorf("%s: %v", store.Identity(), err)
		}
	}
	for name, c := range map[string]struct {
		store *trust.Store
		says  string
	}{
		"a user":          {trusttest.Member(t, proxy, jane, 0), "bad certificate"},
		"another cluster": {trusttest.Member(t, trusttest.Cluster(t), hostA, 0), "unknown authority"},
		"an expired one":  {expired(t, proxy), "expired"},
	} {
		d, err := openWithin(t, e, c.store, 2*time.Second)
		if err == nil {
			t.Errorf("%s was let in: %v", name, d)
		} else if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: the error does not say %q: %v", name, c.says, err)
		}
	}
	if _, err := Open(t.Context(), Options{Endpoints: []string{strings.Replace(e.Endpoint(), "https", "http", 1)}, Timeout: time.Second}); err == nil {
		t.Error("one who does not speak TLS was let in")
	}
}

// expired is a member whose certificate is no longer good.
func expired(t *testing.T, issuer *trust.Store) *trust.Store {
	s := trusttest.Member(t, issuer, hostA, trust.MinLifetime)
	for !time.Now().After(s.Leaf().NotAfter) {
		<-time.After(10 * time.Millisecond)
	}
	return s
}

// TestRevokedConnection: a connection that exists does not outlive a revocation.
func TestRevokedConnection(t *testing.T) {
	proxy := trusttest.Cluster(t)
	var revoked atomic.Pointer[map[string]bool]
	revoked.Store(&map[string]bool{})
	proxy.SetRevoked(func(serial string) bool { return (*revoked.Load())[serial] })
	e := startSecure(t, proxy)
	own, err := openSecure(t, e, proxy)
	if err != nil {
		t.Fatal(err)
	}
	a := trusttest.Member(t, proxy, hostA, 0)
	serial := trust.Serial(a.Leaf())
	if err := own.AddCertificate(t.Context(), hostA, Certificate{serial, a.Leaf().NotAfter}, false); err != nil {
		t.Fatal(err)
	}
	d, err := openSecure(t, e, a)
	if err != nil {
		t.Fatal(err)
	}
	views := d.Watch(t.Context())
	<-views
	sets := own.WatchRevoked(t.Context())
	if set := <-sets; len(set) > 0 {
		t.Fatalf("revoked at first: %v", set)
	}
	if err := own.Revoke(t.Context(), hostA); err != nil {
		t.Fatal(err)
	}
	set := <-sets
	if !set[serial] || len(set) != 1 {
		t.Fatalf("revoked: %v, want %s", set, serial)
	}
	revoked.Store(&set)
	if _, err := d.View(t.Context()); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("a call on the open connection: %v", err)
	}
	// What changes now is not shown to it.
	if err := own.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	select {
	case v, ok := <-views:
		if ok && v.Cluster != nil {
			t.Error("the open watch goes on")
		}
	case <-time.After(500 * time.Millisecond):
	}
	if _, err := openWithin(t, e, a, 2*time.Second); err == nil {
		t.Error("a new connection was let in")
	}
	// Neither is it given a new certificate, before it joins again.
	next := Certificate{"77", time.Now().Add(time.Hour)}
	if err := own.AddCertificate(t.Context(), hostA, next, true); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("a renewal: %v", err)
	}
	if err := own.AddCertificate(t.Context(), hostA, next, false); err != nil {
		t.Errorf("joining again: %v", err)
	}
	if err := own.Revoke(t.Context(), jane); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("turning out a stranger: %v", err)
	}
}

func TestTokens(t *testing.T) {
	d := open(t, start(t))
	const hash, key = "secret's hash", "key's hash"
	record := TokenRecord{ID: "abc", Kind: trust.KindHost, SecretHash: hash, CreatedBy: "local root", ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	if err := d.CreateToken(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	if tokens, err := d.Tokens(t.Context()); err != nil || len(tokens) != 1 || tokens[0] != record {
		t.Errorf("tokens: %+v, %v", tokens, err)
	}
	for _, c := range []struct {
		id, hash, key string
		ok            bool
	}{
		{"abd", hash, key, false}, {"abc", "another", key, false},
		{"abc", hash, key, true},
		{"abc", hash, key, true}, // the answer was lost
		{"abc", hash, "another", false},
		{"abc", "another", key, false},
	} {
		got, err := d.UseToken(t.Context(), c.id, c.hash, c.key)
		if c.ok && (err != nil || got.UsedBy != key) || !c.ok && !errors.Is(err, pod.ErrDenied) {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	if err := d.DeleteToken(t.Context(), "abc"); err != nil {
		t.Error(err)
	}
	if err := d.DeleteToken(t.Context(), "abc"); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("deleting it again: %v", err)
	}
	if _, err := d.UseToken(t.Context(), "abc", hash, key); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("using a deleted token: %v", err)
	}
	record.ID, record.ExpiresAt = "old", time.Now().Add(-time.Second)
	if err := d.CreateToken(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	if _, err := d.UseToken(t.Context(), "old", hash, key); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("using an expired token: %v", err)
	}
}

func TestMembers(t *testing.T) {
	d := open(t, start(t))
	soon := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	for _, c := range []Certificate{{"1", time.Now().Add(-time.Minute)}, {"2", soon}, {"3", soon.Add(time.Hour)}, {"3", soon.Add(time.Hour)}} {
		if err := d.AddCertificate(t.Context(), jane, c, false); err != nil {
			t.Fatal(err)
		}
	}
	promoted := jane
	promoted.Role = trust.RoleAdmin
	if err := d.AddCertificate(t.Context(), promoted, Certificate{"4", soon}, true); err != nil {
		t.Fatal(err)
	}
	members, err := d.Members(t.Context())
	if err != nil || len(members) != 1 {
		t.Fatalf("members: %+v, %v", members, err)
	}
	m := members[0]
	if m.Identity() != promoted || len(m.Certificates) != 3 || !m.ExpiresAt().Equal(soon.Add(time.Hour)) {
		t.Errorf("the member is %+v", m)
	}
}

// TestRemoveHostRevokes: a host that is forgotten is turned out in the same step.
func TestRemoveHostRevokes(t *testing.T) {
	d := open(t, start(t))
	r, err := d.RegisterHost(t.Context(), host("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.AddCertificate(t.Context(), hostA, Certificate{"5", time.Now().Add(time.Hour)}, false); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveHost(t.Context(), "a"); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("removing a live host: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveHost(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if set := <-d.WatchRevoked(t.Context()); !set["5"] {
		t.Errorf("revoked: %v", set)
	}
	if members, err := d.Members(t.Context()); err != nil || len(members) > 0 {
		t.Errorf("members: %v, %v", members, err)
	}
}

// BenchmarkUpdate is the cost of TLS to one change of a record.
func BenchmarkUpdate(b *testing.B) {
	proxy := trusttest.Cluster(b)
	plain, err := StartEmbedded(b.Context(), EmbeddedOptions{DataDir: b.TempDir(), Listen: "127.0.0.1:0", Unsynced: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { plain.Close() })
	insecure, err := Open(b.Context(), Options{Endpoints: []string{plain.Endpoint()}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { insecure.Close() })
	secure, err := openSecure(b, startSecure(b, proxy), proxy)
	if err != nil {
		b.Fatal(err)
	}
	for name, d := range map[string]*Directory{"plain": insecure, "tls": secure} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				c := Certificate{"1", time.Now().Add(time.Hour)}
				if err := d.AddCertificate(b.Context(), hostA, c, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
