package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
)

// token has the issuer make a token.
func (n *node) token(kind trust.Kind, name string, role trust.Role, lifetime time.Duration) string {
	n.t.Helper()
	request := &poddv1.CreateTokenRequest{Kind: string(kind), Name: name, Role: string(role)}
	if lifetime != 0 {
		request.Lifetime = durationpb.New(lifetime)
	}
	response, err := n.trusted(n.local()).CreateToken(n.t.Context(), connect.NewRequest(request))
	if err != nil {
		n.t.Fatal(err)
	}
	return response.Msg.GetToken()
}

func parse(t *testing.T, text string) trust.Token {
	t.Helper()
	token, err := trust.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestJoin(t *testing.T) {
	n := newIssuer(t, 0)
	state := t.TempDir()
	m := Membership{
		StateDir: state, Kind: trust.KindHost, Name: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.10.1.2")},
		Join: n.token(trust.KindHost, "", "", 0), Log: quiet(),
	}
	store, err := m.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if store.Identity() != hostA || store.Secret() == nil || store.IsIssuer() || store.Info().Directory != n.Directory.urls {
		t.Errorf("joined as %s with %+v", store.Identity(), store.Info())
	}
	if ips := store.Leaf().IPAddresses; len(ips) != 1 || ips[0].String() != "10.10.1.2" {
		t.Errorf("the certificate is good for the addresses %v", ips)
	}
	if _, err := os.Stat(filepath.Join(state, "joining.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key to join with is still there: %v", err)
	}
	// A member does not look at the token any more, whatever it is.
	for _, join := range []string{"", m.Join, "@/nonexistent", "nonsense"} {
		again := m
		again.Join, again.Name = join, ""
		if store, err := again.Open(t.Context()); err != nil || store.Identity() != hostA {
			t.Errorf("again with --join %q: %v", join, err)
		}
	}
	// And it does what members do.
	startNode(t, state, store, 0)
	// The token is used up for everybody else.
	other := m
	other.StateDir, other.Name = t.TempDir(), "b"
	if _, err := other.Open(t.Context()); !errors.Is(err, pod.ErrDenied) || !strings.Contains(err.Error(), "used up") {
		t.Errorf("the same token for another: %v", err)
	}
	var joined []string
	for _, r := range n.audited() {
		if method(r.Procedure) == "Join" {
			joined = append(joined, r.Caller+": "+r.Subject+": "+r.Result)
		}
	}
	id := parse(t, m.Join).ID
	if want := []string{"nobody: token " + id + " host a: ok", "nobody: token " + id + " host b: permission_denied"}; strings.Join(joined, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded: %q, want %q", joined, want)
	}
}

// TestJoinRefused tries tokens in ways that they are not for. None is used up by
// it.
func TestJoinRefused(t *testing.T) {
	n := newIssuer(t, 0)
	n.credentials(hostA)
	short, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	named, free := n.token(trust.KindHost, "b", "", 0), n.token(trust.KindHost, "", "", 0)
	expired := n.token(trust.KindHost, "", "", time.Second)
	eventually(t, "a token has expired", func() bool {
		tokens, err := n.Tokens(t.Context())
		return err == nil && len(tokens) == 2
	})
	changed := func(text string, change func(*trust.Token)) trust.Token {
		token := parse(t, text)
		change(&token)
		return token
	}
	for name, test := range map[string]struct {
		token    trust.Token
		kind     trust.Kind
		who      string
		sentinel error
		want     string
	}{
		"another name":     {parse(t, named), trust.KindHost, "c", pod.ErrDenied, "is for host b"},
		"another kind":     {parse(t, named), trust.KindProxy, "b", pod.ErrDenied, "admits a host, not a proxy"},
		"a user":           {parse(t, free), trust.KindUser, "", pod.ErrDenied, "admits a host, not a user"},
		"no name":          {parse(t, free), trust.KindHost, "", pod.ErrInvalid, "name"},
		"a bad name":       {parse(t, free), trust.KindHost, "../b", pod.ErrInvalid, "name"},
		"a name taken":     {parse(t, free), trust.KindHost, "a", pod.ErrExists, "there is a host a already"},
		"expired":          {parse(t, expired), trust.KindHost, "c", pod.ErrDenied, "expired"},
		"unknown":          {changed(free, func(t *trust.Token) { t.ID = "unknown" }), trust.KindHost, "c", pod.ErrDenied, "unknown"},
		"a wrong secret":   {changed(free, func(t *trust.Token) { t.Secret[0]++ }), trust.KindHost, "c", pod.ErrDenied, "unknown"},
		"another cluster":  {changed(free, func(t *trust.Token) { t.Fingerprint = strings.Repeat("0", 64) }), trust.KindHost, "c", pod.ErrUnavailable, "not of the cluster"},
		"cluster of other": {changed(free, func(o *trust.Token) { o.Fingerprint = trusttest.Cluster(t).Fingerprint() }), trust.KindHost, "c", pod.ErrUnavailable, "not of the cluster"},
	} {
		ctx := short
		if test.sentinel == pod.ErrUnavailable {
			bounded, cancel := context.WithTimeout(short, 3*time.Second)
			defer cancel()
			ctx = bounded
		}
		_, err := RequestJoin(ctx, test.token, Applicant{Kind: test.kind, Name: test.who, Key: newKey(t)})
		if !errors.Is(err, test.sentinel) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %v that says %q", name, err, test.sentinel, test.want)
		}
	}
	for _, text := range []string{named, free} {
		key := newKey(t)
		for range 2 { // the answer may be lost
			if _, err := RequestJoin(short, parse(t, text), Applicant{Kind: trust.KindHost, Name: "b", Key: key}); err != nil && text == named {
				t.Errorf("the right one, after all: %v", err)
			} else if text == free && !errors.Is(err, pod.ErrExists) {
				t.Errorf("the name is free again: %v", err)
			}
		}
	}
}

// TestJoinAsUser takes the name and the role from the token, by way of a daemon
// that does not have the authority.
func TestJoinAsUser(t *testing.T) {
	n := newIssuer(t, 0)
	other := n.member(hostA)
	answer, err := RequestJoin(t.Context(), parse(t, n.token(trust.KindUser, "jane", trust.RoleOperator, 0)), Applicant{Kind: trust.KindUser, Key: newKey(t)})
	if err != nil || answer.GetRole() != "operator" || answer.GetSecret() != "" || answer.GetDirectory() != "" {
		t.Fatalf("%+v, %v", answer, err)
	}
	// The other one does not pass calls on, as podproxy does not.
	token := parse(t, n.token(trust.KindUser, "joe", trust.RoleViewer, 0))
	token.Addresses = []string{other.api.String()}
	bounded, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := RequestJoin(bounded, token, Applicant{Kind: trust.KindUser, Key: newKey(t)}); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "ask the daemon at "+n.api.String()) {
		t.Errorf("at a daemon without the authority: %v", err)
	}
	for _, bad := range []*poddv1.CreateTokenRequest{
		{Kind: "user", Role: "viewer"}, {Kind: "user", Name: "x", Role: "king"}, {Kind: "host", Role: "admin"}, {Kind: "local", Name: "root", Role: "admin"},
		{Kind: "host", Lifetime: durationpb.New(time.Hour * 1000)},
	} {
		if _, err := n.trusted(n.local()).CreateToken(t.Context(), connect.NewRequest(bad)); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("a token for %v: %v", bad, err)
		}
	}
}

// TestOpenRefused starts daemons with credentials that are not as they should be.
func TestOpenRefused(t *testing.T) {
	n := newIssuer(t, 0)
	member := func(lifetime time.Duration) Membership {
		m := Membership{StateDir: t.TempDir(), Kind: trust.KindHost, Log: quiet()}
		trusttest.MemberIn(t, trust.Dir(m.StateDir), n.Store, hostA, lifetime)
		return m
	}
	chmod := func(m Membership, file string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(trust.Dir(m.StateDir), file)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct {
		change func(*Membership) (want string)
	}{
		"no member":  {func(m *Membership) string { m.StateDir = t.TempDir(); return "podctl cluster init" }},
		"no token":   {func(m *Membership) string { m.StateDir, m.Join = t.TempDir(), "@/nonexistent"; return "/nonexistent" }},
		"open key":   {func(m *Membership) string { return "chmod 600 " + chmod(*m, "key.pem", 0o640) }},
		"open dir":   {func(m *Membership) string { return "chmod 700 " + strings.TrimSuffix(chmod(*m, ".", 0o755), "/.") }},
		"open age":   {func(m *Membership) string { return "chmod 600 " + chmod(*m, "cluster.age", 0o604) }},
		"other name": {func(m *Membership) string { m.Name = "b"; return "those of host a" }},
		"other kind": {func(m *Membership) string { m.Kind = trust.KindProxy; return "those of host a" }},
		"expired": {func(m *Membership) string {
			*m = member(trust.MinLifetime)
			eventually(t, "the certificate has expired", func() bool {
				store, err := trust.Open(trust.Dir(m.StateDir))
				return err == nil && time.Now().After(store.Leaf().NotAfter)
			})
			return "expired"
		}},
	} {
		m := member(0)
		want := test.change(&m)
		if _, err := m.Open(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	// One that has expired can join again.
	m := member(trust.MinLifetime)
	m.Name, m.Join = "a", n.token(trust.KindHost, "a", "", 0)
	eventually(t, "it has joined again", func() bool {
		store, err := m.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return time.Until(store.Leaf().NotAfter) > time.Hour
	})
}

// TestJoinWaits has an issuer that begins to listen only after it was asked.
func TestJoinWaits(t *testing.T) {
	n := newIssuer(t, 0)
	token := parse(t, n.token(trust.KindHost, "", "", 0))
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	token.Addresses = []string{nobody.Addr().String()}
	nobody.Close()
	done := make(chan error, 1)
	go func() {
		_, err := RequestJoin(t.Context(), token, Applicant{Kind: trust.KindHost, Name: "a", Key: newKey(t)})
		done <- err
	}()
	late, err := net.Listen("tcp", token.Addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- n.Guard.Serve(ctx, late, n.mux) }()
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
