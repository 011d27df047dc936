package daemon

import (
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

// TestRenewal lets a daemon and the issuer outlive their first certificates, and
// has the daemon call the issuer all the time.
func TestRenewal(t *testing.T) {
	const lifetime = 12 * time.Second
	n := newIssuer(t, lifetime)
	// What the issuer was made with is good for a week.
	if err := (&renewer{store: n.Store, dir: n.Cluster.Directory.Directory, issuer: n.issuer}).renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n = startNode(t, n.state, n.Store, lifetime)
	m := Membership{StateDir: t.TempDir(), Kind: trust.KindHost, Name: "a", Join: n.token(trust.KindHost, "", "", 0), Log: quiet()}
	store, err := m.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := startNode(t, m.StateDir, store, 0)
	client := poddv1connect.NewTrustServiceClient(a.Peers.Client(), PeerURL(trust.KindProxy, "proxy"), api.ClientOptions())
	ends := []time.Time{store.Leaf().NotAfter, n.Store.Leaf().NotAfter}
	calls := 0
	eventually(t, "both have outlived their first certificates", func() bool {
		if _, err := client.GetTrust(t.Context(), connect.NewRequest(&poddv1.GetTrustRequest{})); err != nil {
			t.Fatalf("call %d, %s after the certificate's end: %v", calls, time.Since(ends[0]), err)
		}
		calls++
		return time.Now().After(ends[0].Add(time.Second)) && time.Now().After(ends[1].Add(time.Second))
	})
	if !store.Leaf().NotAfter.After(ends[0]) || !n.Store.Leaf().NotAfter.After(ends[1]) {
		t.Error("a certificate was not renewed")
	}
	t.Logf("%d calls", calls)
	// What is on disk is the new one.
	again, err := trust.Open(trust.Dir(m.StateDir))
	if err != nil || again.Leaf().NotAfter.Before(ends[0]) {
		t.Errorf("on disk: %v, %v", again.Leaf().NotAfter, err)
	}
}

// TestRenewOnlyForTheKey has others ask in a member's name.
func TestRenewOnlyForTheKey(t *testing.T) {
	n := newIssuer(t, 0)
	renew := func(caller *trust.Store, key *trust.Store) error {
		request, err := trust.NewRequest(key.Key())
		if err != nil {
			t.Fatal(err)
		}
		response, err := n.trusted(n.client(caller)).Renew(t.Context(), connect.NewRequest(&poddv1.RenewRequest{Request: request}))
		if err != nil {
			return err
		}
		return caller.Replace([]byte(response.Msg.GetCertificate()))
	}
	jane, other := n.credentials(operator), n.credentials(viewer)
	first := jane.Leaf()
	if err := renew(jane, jane); err != nil || jane.Leaf() == first || jane.Identity() != operator {
		t.Errorf("one's own: %v", err)
	}
	if err := renew(other, jane); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("for another's key: %v", err)
	}
	request, err := trust.NewRequest(jane.Key())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.trusted(n.local()).Renew(t.Context(), connect.NewRequest(&poddv1.RenewRequest{Request: request})); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("without a certificate: %v", err)
	}
	// Whose role was changed does not get the old one back.
	changed := operator
	changed.Role = trust.RoleViewer
	n.credentials(changed)
	if err := renew(jane, jane); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("with the former role: %v", err)
	}
}
