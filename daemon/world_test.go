package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

var (
	viewer   = trust.Identity{Kind: trust.KindUser, Name: "vera", Role: trust.RoleViewer}
	operator = trust.Identity{Kind: trust.KindUser, Name: "olga", Role: trust.RoleOperator}
	admin    = trust.Identity{Kind: trust.KindUser, Name: "ada", Role: trust.RoleAdmin}
	hostA    = trust.Identity{Kind: trust.KindHost, Name: "a"}
)

// node is a daemon as far as this package makes it one: its services are
// unimplemented, but for that of trust.
type node struct {
	*Cluster
	t      *testing.T
	state  string
	api    netip.AddrPort
	socket string
	mux    *http.ServeMux
	stop   func()
}

// newIssuer starts the first daemon of a cluster, which has its authority and
// its directory.
func newIssuer(t *testing.T, lifetime time.Duration) *node {
	t.Helper()
	state := t.TempDir()
	return startNode(t, state, trusttest.InitIn(t, trust.Dir(state)), lifetime)
}

// member starts another daemon of the issuer's cluster.
func (n *node) member(who trust.Identity) *node {
	n.t.Helper()
	state := n.t.TempDir()
	store := trusttest.MemberIn(n.t, trust.Dir(state), n.Store, who, 0)
	if err := store.SetInfo(trust.ClusterInfo{Directory: n.Cluster.Directory.urls}); err != nil {
		n.t.Fatal(err)
	}
	n.record(store)
	return startNode(n.t, state, store, 0)
}

// record makes the holder of a certificate that no issuer gave out a member.
func (n *node) record(store *trust.Store) {
	n.t.Helper()
	leaf := store.Leaf()
	err := n.AddCertificate(n.t.Context(), store.Identity(), directory.Certificate{Serial: trust.Serial(leaf), ExpiresAt: leaf.NotAfter}, false)
	if err != nil {
		n.t.Fatal(err)
	}
}

func startNode(t *testing.T, state string, store *trust.Store, lifetime time.Duration) *node {
	t.Helper()
	n := &node{t: t, state: state, socket: filepath.Join(state, "s"), mux: http.NewServeMux()}
	var err error
	n.Cluster, err = OpenCluster(t.Context(), ClusterOptions{
		Store: store, StateDir: state, Lifetime: lifetime, Log: quiet(),
		Directory: DirectoryOptions{StateDir: state, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Name: store.Identity().Name, Unsynced: true, Log: quiet()},
	})
	if err != nil {
		t.Fatal(err)
	}
	local, err := ListenLocal(n.socket)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	n.api = netip.MustParseAddrPort(remote.Addr().String())
	n.register()

	options := n.Guard.HandlerOptions()
	n.mux.Handle(poddv1connect.NewPodServiceHandler(poddv1connect.UnimplementedPodServiceHandler{}, options...))
	n.mux.Handle(poddv1connect.NewImageServiceHandler(poddv1connect.UnimplementedImageServiceHandler{}, options...))
	n.mux.Handle(poddv1connect.NewHostServiceHandler(&Hosts{Directory: n.Directory.Directory}, options...))
	n.mux.Handle(poddv1connect.NewMoveServiceHandler(poddv1connect.UnimplementedMoveServiceHandler{}, options...))
	n.mux.Handle(poddv1connect.NewTargetServiceHandler(poddv1connect.UnimplementedTargetServiceHandler{}, options...))
	n.mux.Handle(poddv1connect.NewProxyServiceHandler(poddv1connect.UnimplementedProxyServiceHandler{}, options...))
	n.HandleTrust(n.mux)

	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 3)
	go func() { done <- n.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatal("it did not become known what is revoked")
	}
	for _, l := range []net.Listener{local, remote} {
		go func() { done <- n.Guard.Serve(ctx, l, n.mux) }()
	}
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				t.Errorf("%s: %v", store.Identity(), err)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(n.stop)
	return n
}

func (n *node) register() {
	n.t.Helper()
	i := n.Store.Identity()
	var err error
	var registration *directory.Registration
	if i.Kind == trust.KindProxy {
		registration, err = n.RegisterProxy(n.t.Context(), pod.Proxy{Name: i.Name, API: n.api, Physical: n.api.Addr(), Issuer: n.Store.IsIssuer()})
	} else {
		registration, err = n.RegisterHost(n.t.Context(), pod.Host{Name: i.Name, API: n.api, Physical: n.api.Addr(), Issuer: n.Store.IsIssuer()})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(registration.Abandon)
}

// credentials makes somebody a member of the issuer's cluster.
func (n *node) credentials(who trust.Identity) *trust.Store {
	n.t.Helper()
	store := trusttest.Member(n.t, n.Store, who, 0)
	n.record(store)
	return store
}

// client calls a daemon with credentials; nil for none.
func (n *node) client(credentials *trust.Store) *http.Client {
	config := n.Store.ClientTLS(n.Store.Identity().ServerName())
	config.GetClientCertificate = nil
	if credentials != nil {
		config = credentials.ClientTLS(n.Store.Identity().ServerName())
	}
	return n.httpClient(&http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true})
}

// local calls a daemon by its socket.
func (n *node) local() *http.Client {
	return n.httpClient(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.socket)
	}})
}

func (n *node) httpClient(transport *http.Transport) *http.Client {
	n.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// url is where client reaches the daemon, and local with http.
func (n *node) url() string { return "https://" + n.api.String() }

// trusted is the service of trust as the client of http sees it.
func (n *node) trusted(client *http.Client) poddv1connect.TrustServiceClient {
	url := n.url()
	if client.Transport.(*http.Transport).DialContext != nil {
		url = "http://podd"
	}
	return poddv1connect.NewTrustServiceClient(client, url, api.ClientOptions())
}

// post sends a message to a procedure, whatever its kind, and returns all that
// comes back.
func post(t *testing.T, client *http.Client, url, message string, header http.Header) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if strings.HasPrefix(message, "\x00") {
		request.Header.Set("Content-Type", "application/connect+json")
	}
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// envelope is a message of a stream.
func envelope(message string) string {
	return "\x00" + string([]byte{0, 0, byte(len(message) >> 8), byte(len(message))}) + message
}

// audited are the records of a daemon's audit file.
func (n *node) audited() []auditRecord {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.state, "audit.jsonl"))
	if err != nil {
		n.t.Fatal(err)
	}
	var records []auditRecord
	for line := range bytes.Lines(data) {
		var r auditRecord
		if err := json.Unmarshal(line, &r); err != nil {
			n.t.Fatalf("%s: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
