// Package trusttest makes real clusters for tests: an authority and members with
// certificates it has issued. Nothing in it is faked but the way in, which needs
// no daemon.
package trusttest

import (
	"crypto/ed25519"
	"path/filepath"
	"testing"
	"time"

	"podd/trust"
)

// Cluster makes a cluster whose first member, and issuer, is the proxy "proxy",
// which embeds the directory.
func Cluster(t testing.TB) *trust.Store {
	t.Helper()
	return InitIn(t, filepath.Join(t.TempDir(), "trust"))
}

// InitIn is Cluster with the proxy's credentials in dir, which must not exist.
func InitIn(t testing.TB, dir string) *trust.Store {
	t.Helper()
	s, err := trust.Init(dir, trust.InitOptions{
		Identity: trust.Identity{Kind: trust.KindProxy, Name: "proxy"},
		Info:     trust.ClusterInfo{Directory: trust.Embedded},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Member makes another member of the issuer's cluster, with a certificate for
// lifetime; 0 means the usual one.
func Member(t testing.TB, issuer *trust.Store, i trust.Identity, lifetime time.Duration) *trust.Store {
	t.Helper()
	return MemberIn(t, filepath.Join(t.TempDir(), "trust"), issuer, i, lifetime)
}

// MemberIn is Member with the credentials in dir, which must not exist.
func MemberIn(t testing.TB, dir string, issuer *trust.Store, i trust.Identity, lifetime time.Duration) *trust.Store {
	t.Helper()
	authority, err := trust.LoadAuthority(issuer.Dir())
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	request, err := trust.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := authority.Issue(request, trust.Profile{Identity: i, Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	m := trust.Membership{Key: key, Chain: chain, Authority: issuer.AuthorityPEM(), Info: issuer.Info()}
	if i.Kind == trust.KindHost {
		m.Secret = issuer.Secret().String()
	}
	s, err := trust.Create(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
