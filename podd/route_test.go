package podd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/daemon"
	"podd/pod"
	"podd/trust"
)

// servedBy answers every call by naming the host it reached.
type servedBy struct {
	poddv1connect.UnimplementedPodServiceHandler
	host string
}

func (s servedBy) StopPod(context.Context, *connect.Request[poddv1.StopPodRequest]) (*connect.Response[poddv1.StopPodResponse], error) {
	return nil, fmt.Errorf("%w: served by %s", pod.ErrPhase, s.host)
}

// Exec echoes input one message at a time.
func (s servedBy) Exec(_ context.Context, stream *connect.BidiStream[poddv1.ExecRequest, poddv1.ExecResponse]) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return stream.Send(&poddv1.ExecResponse{Response: &poddv1.ExecResponse_ExitCode{ExitCode: 7}})
		}
		if err != nil {
			return err
		}
		reply := s.host + " " + m.GetStart().GetPod() + string(m.GetStdin())
		if err := stream.Send(&poddv1.ExecResponse{Response: &poddv1.ExecResponse_Stdout{Stdout: []byte(reply)}}); err != nil {
			return err
		}
	}
}

// routedCluster is a router for each of some hosts, served over TLS.
type routedCluster struct {
	*testCluster
	pods map[string]string // pod -> host, as the directory says
	stop map[string]func() // by host
}

func newRoutedCluster(t *testing.T, hosts ...string) *routedCluster {
	t.Helper()
	c := &routedCluster{testCluster: newTestCluster(t), pods: map[string]string{}, stop: map[string]func(){}}
	for _, name := range hosts {
		c.add(name, c)
	}
	return c
}

// add makes a host whose router believes in routes.
func (c *routedCluster) add(name string, routes routes) {
	c.t.Helper()
	mux := http.NewServeMux()
	mux.Handle(poddv1connect.NewPodServiceHandler(servedBy{host: name}, api.HandlerOptions()))
	mux.HandleFunc("POST "+transferPath, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served by "+name) })
	store := c.store(host(name))
	c.stop[name] = c.serve(store, newRouter(host(name), routes, c.peersOf(store), mux, discard()))
}

func (c *routedCluster) podHost(_ context.Context, name string) (string, error) {
	if h, ok := c.pods[name]; ok {
		return h, nil
	}
	return "", fmt.Errorf("pod %s: %w", name, pod.ErrNotFound)
}

func (c *routedCluster) hostAPI(_ context.Context, name string) (string, error) {
	if a, ok := c.apis[trust.ServerName(trust.KindHost, name)]; ok {
		return a.String(), nil
	}
	return "", fmt.Errorf("host %s: %w", name, pod.ErrNotFound)
}

// servesHere is true for pods of the host "gone".
func (c *routedCluster) servesHere(_ *http.Request, host string) bool { return host == "gone" }

func (c *routedCluster) issuer(context.Context) (trust.Identity, error) { return host("b"), nil }

// admin calls hosts as an admin does.
func (c *routedCluster) admin() *daemon.Peers {
	return c.peers(trust.Identity{Kind: trust.KindUser, Name: "root", Role: trust.RoleAdmin})
}

func (c *routedCluster) client(host string) poddv1connect.PodServiceClient {
	return poddv1connect.NewPodServiceClient(c.admin().Client(), daemon.PeerURL(trust.KindHost, host), api.ClientOptions())
}

// stopPod asks host to stop a pod and returns the error, which names who served it.
func (c *routedCluster) stopPod(t *testing.T, host, name string) error {
	t.Helper()
	_, err := c.client(host).StopPod(t.Context(), connect.NewRequest(&poddv1.StopPodRequest{Pod: name}))
	if err == nil {
		t.Fatal("the call succeeded; the test's handler never lets it")
	}
	return err
}

func TestRouterFindsTheHost(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.pods["alice"], c.pods["bob"], c.pods["carol"] = "a", "b", "gone"
	if err := c.stopPod(t, "a", "carol"); !strings.Contains(err.Error(), "served by a") {
		t.Errorf("what a serves in place of another: %v", err)
	}
	delete(c.pods, "carol")
	for name, host := range c.pods {
		for _, asked := range []string{"a", "b"} {
			// The error crosses with its kind and its words.
			if err := c.stopPod(t, asked, name); !errors.Is(err, pod.ErrPhase) || !strings.Contains(err.Error(), "served by "+host) {
				t.Errorf("stopping %s by way of %s: %v, want it served by %s", name, asked, err, host)
			}
		}
	}
}

func TestRouterRefuses(t *testing.T) {
	c := newRoutedCluster(t, "a")
	// Nobody listens there any more.
	c.add("down", c)
	c.stop["down"]()
	address := c.apis["down.host.podd"].String()
	c.pods["stranded"], c.pods["lost"] = "down", "never-joined"
	for name, want := range map[string]struct {
		sentinel error
		text     string
	}{
		"nobody":   {pod.ErrNotFound, "pod nobody"},
		"lost":     {pod.ErrNotFound, "host never-joined"},
		"stranded": {pod.ErrUnavailable, "host down at " + address},
	} {
		if err := c.stopPod(t, "a", name); !errors.Is(err, want.sentinel) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("pod %s: got %v, want %v that says %q", name, err, want.sentinel, want.text)
		}
	}
}

// TestRouterDoesNotLoop has two hosts that each believe the pod is on the other.
func TestRouterDoesNotLoop(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.add("c", stubborn{c, "a"})
	c.pods["alice"] = "c"
	if err := c.stopPod(t, "a", "alice"); !strings.Contains(err.Error(), "served by c") {
		t.Errorf("got %v, want it served where it was passed on to", err)
	}
}

// stubborn believes that every pod is on one host.
type stubborn struct {
	routes
	host string
}

func (s stubborn) podHost(context.Context, string) (string, error) { return s.host, nil }

// TestRouterLendsNobodyItsName asks a host to pass on what only hosts may ask,
// and joining, for which there is no other way.
func TestRouterLendsNobodyItsName(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	ask := func(peers *daemon.Peers, path, route string) string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, daemon.PeerURL(trust.KindHost, "a")+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(api.RouteHeader, route)
		request.Header.Set("Content-Type", "application/json")
		response, err := peers.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	for path, want := range map[string]string{
		transferPath:            "served by a",
		"/podd.v1.Nonsense/Pod": "permission_denied",
		poddv1connect.TargetServiceCheckTargetProcedure: "permission_denied",
	} {
		if got := ask(c.admin(), path, "host/b"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	// A call of another host's own is not passed on in its name either.
	if got := ask(c.peers(host("x")), poddv1connect.PodServiceListPodsProcedure, "host/b"); !strings.Contains(got, "a daemon's own call") {
		t.Errorf("a host's own call: %q", got)
	}
}

// TestRouterStreams has a conversation by way of another host: each message
// must get through before the next is sent.
func TestRouterStreams(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.pods["bob"] = "b"
	stream := c.client("a").Exec(t.Context())
	say := func(m *poddv1.ExecRequest, want string) {
		t.Helper()
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		got, err := stream.Receive()
		if err != nil || string(got.GetStdout()) != want {
			t.Fatalf("got %q, %v; want %q", got.GetStdout(), err, want)
		}
	}
	say(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Start{Start: &poddv1.ExecStart{Pod: "bob"}}}, "b bob")
	for range 3 {
		say(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Stdin{Stdin: []byte("ping")}}, "b ping")
	}
	if err := stream.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Receive(); err != nil || got.GetExitCode() != 7 {
		t.Errorf("got %v, %v; want exit code 7", got, err)
	}
	if err := stream.CloseResponse(); err != nil {
		t.Error(err)
	}
}

// A client that sends nothing learns at once that the host it is connected to,
// by way of another, has gone.
func TestRouterPassesOnTheEnd(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.pods["bob"] = "b"
	stream := c.client("a").Exec(t.Context())
	if err := stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Start{Start: &poddv1.ExecStart{Pod: "bob"}}}); err != nil {
		t.Fatal(err)
	}
	if reply, err := stream.Receive(); err != nil || string(reply.GetStdout()) != "b bob" {
		t.Fatalf("reply %v, error %v", reply, err)
	}
	c.stop["b"]()
	ended := make(chan error, 1)
	go func() {
		_, err := stream.Receive()
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a reply from a host that has gone")
		}
	case <-time.After(30 * time.Second):
		t.Error("the stream goes on although the host has gone")
	}
}
