package trust

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podd/pod"
)

// newCluster makes a cluster whose first member is proxy p.
func newCluster(t testing.TB) *Store {
	t.Helper()
	s, err := Init(filepath.Join(t.TempDir(), "trust"), InitOptions{
		Identity:  Identity{Kind: KindProxy, Name: "p"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2")},
		Info:      ClusterInfo{Directory: Embedded, Issuers: []string{"10.10.0.2:7444"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// join makes a member of issuer's cluster.
func join(t testing.TB, issuer *Store, i Identity, lifetime time.Duration) *Store {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "trust"), membership(t, issuer, i, lifetime))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func membership(t testing.TB, issuer *Store, i Identity, lifetime time.Duration) Membership {
	t.Helper()
	authority, err := LoadAuthority(issuer.Dir())
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := authority.Issue(request, Profile{Identity: i, Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	return Membership{Key: key, Chain: chain, Authority: issuer.AuthorityPEM(), Secret: issuer.Secret().String()}
}

var (
	hostA = Identity{Kind: KindHost, Name: "a"}
	jane  = Identity{Kind: KindUser, Name: "jane", Role: RoleOperator}
)

// handshake connects a client to a server and returns who each takes the other
// for.
func handshake(t *testing.T, server, client *tls.Config, store *Store) (Identity, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type outcome struct {
		peer Identity
		err  error
	}
	served := make(chan outcome, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- outcome{err: err}
			return
		}
		defer conn.Close()
		secure := tls.Server(conn, server)
		if err := secure.Handshake(); err != nil {
			served <- outcome{err: err}
			return
		}
		state := secure.ConnectionState()
		peer, err := store.Peer(&state)
		fmt.Fprint(secure, "hello")
		served <- outcome{peer, err}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		defer conn.Close()
		// The server refuses a client after its part of the handshake.
		_, err = io.ReadAll(conn)
	} else {
		l.Close()
	}
	o := <-served
	return o.peer, errors.Join(err, o.err)
}

func TestHandshake(t *testing.T) {
	proxy := newCluster(t)
	a, user := join(t, proxy, hostA, 0), join(t, proxy, jane, 0)
	stranger := join(t, newCluster(t), hostA, 0)

	for _, c := range []struct {
		name   string
		client *tls.Config
		want   Identity
		fails  string
	}{
		{"a host", a.ClientTLS("p.proxy.podd"), hostA, ""},
		{"a user", user.ClientTLS(DaemonName), jane, ""},
		{"the directory", a.ClientTLS(DirectoryName), hostA, ""},
		{"the directory at another name", func() *tls.Config {
			c := a.DirectoryTLS()
			c.ServerName = "127.0.0.1"
			return c
		}(), hostA, ""},
		{"a directory of another cluster", stranger.DirectoryTLS(), Identity{}, "unknown authority"},
		{"another name", a.ClientTLS("b.host.podd"), Identity{}, "not b.host.podd"},
		{"another cluster", stranger.ClientTLS("p.proxy.podd"), Identity{}, "unknown authority"},
		{"nobody", &tls.Config{InsecureSkipVerify: true}, Identity{}, "not authenticated"},
		{"old TLS", &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, Identity{}, "version"},
		{"a stranger who does not care", func() *tls.Config {
			c := stranger.ClientTLS("")
			c.InsecureSkipVerify, c.VerifyConnection = true, nil
			return c
		}(), Identity{}, "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			peer, err := handshake(t, proxy.ServerTLS(), c.client, proxy)
			if peer != c.want {
				t.Errorf("the server sees %v, want %v", peer, c.want)
			}
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("error is %v, want %q", err, c.fails)
			}
		})
	}
}

// TestUserIsNoServer: a user's certificate does not let its holder play a daemon.
func TestUserIsNoServer(t *testing.T) {
	proxy := newCluster(t)
	a, user := join(t, proxy, hostA, 0), join(t, proxy, jane, 0)
	if _, err := handshake(t, user.ServerTLS(), a.ClientTLS("jane.user.podd"), user); err == nil {
		t.Error("a user's certificate was taken for a server's")
	}
}

// TestDirectoryIsItself: no other daemon is taken for the directory.
func TestDirectoryIsItself(t *testing.T) {
	proxy := newCluster(t)
	a := join(t, proxy, hostA, 0)
	if _, err := handshake(t, a.ServerTLS(), proxy.DirectoryTLS(), a); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("a host that plays the directory: %v", err)
	}
}

func TestRevoked(t *testing.T) {
	proxy := newCluster(t)
	a := join(t, proxy, hostA, 0)
	revoked := func(serial string) bool { return serial == Serial(a.Leaf()) }
	proxy.SetRevoked(revoked)
	if _, err := handshake(t, proxy.ServerTLS(), a.ClientTLS("p.proxy.podd"), proxy); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("a revoked client: %v", err)
	}
	b := join(t, proxy, Identity{Kind: KindHost, Name: "b"}, 0)
	b.SetRevoked(revoked)
	if _, err := handshake(t, a.ServerTLS(), b.ClientTLS("a.host.podd"), a); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("a revoked server: %v", err)
	}
	if _, _, err := proxy.VerifyChain(a.Chain(), time.Now()); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("a revoked signer: %v", err)
	}
}

func TestReplace(t *testing.T) {
	proxy := newCluster(t)
	a := join(t, proxy, hostA, time.Hour)
	if left := time.Until(a.RenewAt()); left < 19*time.Minute || left > 21*time.Minute {
		t.Errorf("an hour's certificate is renewed in %v, want a third", left)
	}
	authority, err := LoadAuthority(proxy.Dir())
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(a.Key())
	if err != nil {
		t.Fatal(err)
	}
	chain, leaf, err := authority.Issue(request, Profile{Identity: hostA, Lifetime: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Replace(chain); err != nil {
		t.Fatal(err)
	}
	again, err := Open(a.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{a, again} {
		if !s.Leaf().Equal(leaf) {
			t.Error("the old certificate is still there")
		}
	}
	other := membership(t, proxy, hostA, 0)
	asB, _, err := authority.Issue(request, Profile{Identity: Identity{Kind: KindHost, Name: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][]byte{
		"another key": other.Chain, "another name": asB, "another cluster": join(t, newCluster(t), hostA, 0).Chain(),
		"nothing": nil, "a key": []byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"),
	} {
		if err := a.Replace(chain); !errors.Is(err, pod.ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExpired: an expired certificate can be read, to say so, and proves nothing.
func TestExpired(t *testing.T) {
	proxy := newCluster(t)
	a := join(t, proxy, hostA, MinLifetime)
	if _, _, err := proxy.VerifyChain(a.Chain(), time.Now().Add(time.Hour)); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("an expired certificate: %v", err)
	}
	if _, err := Open(a.Dir()); err != nil {
		t.Error(err)
	}
}

func TestInitTwice(t *testing.T) {
	s := newCluster(t)
	if _, err := Init(s.Dir(), InitOptions{Identity: hostA}); !errors.Is(err, pod.ErrExists) {
		t.Errorf("a second Init: %v", err)
	}
	if _, err := Create(s.Dir(), membership(t, s, hostA, 0)); !errors.Is(err, pod.ErrExists) {
		t.Errorf("Create over another's: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.Dir()), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	if _, err := Init(filepath.Join(t.TempDir(), "x"), InitOptions{Identity: jane}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a cluster that begins with a user: %v", err)
	}
}

func TestFiles(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNoMember) {
		t.Errorf("no credentials: %v", err)
	}
	s := newCluster(t)
	entries, err := os.ReadDir(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	for _, name := range []string{keyFile, secretFile, authorityKeyFile, "."} {
		path := filepath.Join(s.Dir(), name)
		good, wide := os.FileMode(0o600), os.FileMode(0o640)
		if name == "." {
			good, wide = 0o700, 0o711
		}
		if err := os.Chmod(path, wide); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(s.Dir()); !errors.Is(err, pod.ErrUntrusted) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("%s with mode %o: %v", name, wide, err)
		}
		if err := os.Chmod(path, good); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.Dir()); err != nil {
		t.Error(err)
	}
	member := join(t, s, hostA, 0)
	if _, err := LoadAuthority(member.Dir()); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("the authority of one that has none: %v", err)
	}
	if member.IsIssuer() || !s.IsIssuer() {
		t.Error("who is an issuer is not told")
	}
	if member.Recipient() != s.Recipient() || member.Recipient() == "" {
		t.Error("two hosts encrypt to different keys")
	}
}

func TestMixedUpMembership(t *testing.T) {
	proxy := newCluster(t)
	good, other := membership(t, proxy, hostA, 0), membership(t, newCluster(t), hostA, 0)
	for name, m := range map[string]Membership{
		"another's key":       {Key: other.Key, Chain: good.Chain, Authority: good.Authority},
		"another's authority": {Key: good.Key, Chain: good.Chain, Authority: other.Authority},
		"no certificate":      {Key: good.Key, Authority: good.Authority},
		"a bad secret":        {Key: good.Key, Chain: good.Chain, Authority: good.Authority, Secret: "AGE-SECRET-KEY-1"},
	} {
		dir := filepath.Join(t.TempDir(), "trust")
		if _, err := Create(dir, m); !errors.Is(err, pod.ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s: something was stored", name)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	proxy := newCluster(t)
	authority, err := LoadAuthority(proxy.Dir())
	if err != nil {
		t.Fatal(err)
	}
	request, err := NewRequest(proxy.Key())
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), request...)
	damaged[len(damaged)-1] ^= 1
	for name, c := range map[string]struct {
		request []byte
		i       Identity
	}{
		"no request":         {nil, hostA},
		"a damaged request":  {damaged, hostA},
		"a host with a role": {request, Identity{KindHost, "a", RoleAdmin}},
		"a user without":     {request, Identity{KindUser, "jane", ""}},
		"a bad name":         {request, Identity{KindHost, "a.host.podd,b", ""}},
		"a local caller":     {request, Identity{KindLocal, "root", RoleAdmin}},
	} {
		if _, _, err := authority.Issue(c.request, Profile{Identity: c.i}); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFromCertificateRefuses(t *testing.T) {
	for _, names := range [][]string{
		nil, {DaemonName}, {"a.host.podd", "b.host.podd"}, {"a.host.podd", "jane.user.podd"},
		{"jane.user.podd"}, {"jane.user.podd", "admin.role.podd", "viewer.role.podd"}, {"jane.user.podd", "root.role.podd"},
		{"a.host.podd", "admin.role.podd"}, {"a.host.podd", "example.com"}, {"x.a.host.podd"}, {"root.local.podd", "admin.role.podd"},
	} {
		if i, err := FromCertificate(&x509.Certificate{DNSNames: names}); !errors.Is(err, pod.ErrUntrusted) {
			t.Errorf("%v: %v, %v", names, i, err)
		}
	}
}

func TestIdentityText(t *testing.T) {
	for _, i := range []Identity{hostA, jane, {KindProxy, "p", ""}, {KindLocal, "root", RoleAdmin}} {
		got, err := ParseIdentity(i.Text())
		if err != nil || got != i {
			t.Errorf("%q: %v, %v", i.Text(), got, err)
		}
	}
	for _, text := range []string{"", "host", "host/", "host/A", "user/jane", "user/jane/root", "host/a/admin", "x/y", "user/jane/admin/more"} {
		if _, err := ParseIdentity(text); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestRoles(t *testing.T) {
	for have, want := range map[Role][3]bool{
		RoleViewer: {true, false, false}, RoleOperator: {true, true, false}, RoleAdmin: {true, true, true}, "": {}, "root": {},
	} {
		for n, need := range Roles {
			if have.Allows(need) != want[n] {
				t.Errorf("%q allows %q: %v", have, need, have.Allows(need))
			}
		}
	}
}
