package podd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
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

// routedCluster is a router for each of some hosts, served over h2c.
type routedCluster struct {
	servers map[string]*httptest.Server
	pods    map[string]string // pod -> host, as the directory says
	apis    map[string]string // host -> address
}

func newRoutedCluster(t *testing.T, hosts ...string) *routedCluster {
	t.Helper()
	c := &routedCluster{servers: map[string]*httptest.Server{}, pods: map[string]string{}, apis: map[string]string{}}
	lookup := func(what string, in map[string]string) func(context.Context, string) (string, error) {
		return func(_ context.Context, name string) (string, error) {
			if v, ok := in[name]; ok {
				return v, nil
			}
			return "", fmt.Errorf("%s %s: %w", what, name, pod.ErrNotFound)
		}
	}
	for _, host := range hosts {
		mux := http.NewServeMux()
		mux.Handle(poddv1connect.NewPodServiceHandler(servedBy{host: host}, api.HandlerOptions()))
		server := httptest.NewUnstartedServer(newRouter(host, lookup("pod", c.pods), lookup("host", c.apis), mux))
		protocols := new(http.Protocols)
		protocols.SetHTTP1(true)
		protocols.SetUnencryptedHTTP2(true)
		server.Config.Protocols = protocols
		server.Start()
		t.Cleanup(server.Close)
		c.servers[host] = server
		c.apis[host] = server.Listener.Addr().String()
	}
	return c
}

func (c *routedCluster) client(t *testing.T, host string) poddv1connect.PodServiceClient {
	t.Helper()
	transport := h2cTransport()
	t.Cleanup(transport.CloseIdleConnections)
	return poddv1connect.NewPodServiceClient(&http.Client{Transport: transport}, "http://"+c.apis[host], api.ClientOptions())
}

// stop asks host to stop a pod and returns the error, which names who served it.
func (c *routedCluster) stop(t *testing.T, host, name string) error {
	t.Helper()
	_, err := c.client(t, host).StopPod(t.Context(), connect.NewRequest(&poddv1.StopPodRequest{Pod: name}))
	if err == nil {
		t.Fatal("the call succeeded; the test's handler never lets it")
	}
	return err
}

func TestRouterFindsTheHost(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.pods["alice"], c.pods["bob"] = "a", "b"
	for name, host := range c.pods {
		for _, asked := range []string{"a", "b"} {
			// The error crosses with its kind and its words.
			if err := c.stop(t, asked, name); !errors.Is(err, pod.ErrPhase) || !strings.Contains(err.Error(), "served by "+host) {
				t.Errorf("stopping %s by way of %s: %v, want it served by %s", name, asked, err, host)
			}
		}
	}
}

func TestRouterRefuses(t *testing.T) {
	c := newRoutedCluster(t, "a")
	// Nobody listens there any more.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.apis["down"] = listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	c.pods["stranded"], c.pods["lost"] = "down", "never-joined"
	for name, want := range map[string]struct {
		sentinel error
		text     string
	}{
		"nobody":   {pod.ErrNotFound, "pod nobody"},
		"lost":     {pod.ErrNotFound, "host never-joined"},
		"stranded": {pod.ErrUnavailable, "host down at " + c.apis["down"]},
	} {
		if err := c.stop(t, "a", name); !errors.Is(err, want.sentinel) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("pod %s: got %v, want %v that says %q", name, err, want.sentinel, want.text)
		}
	}
}

// TestRouterDoesNotLoop has two hosts that each believe the pod is on the other.
func TestRouterDoesNotLoop(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	apis := c.apis
	believes := func(host string) func(context.Context, string) (string, error) {
		return func(context.Context, string) (string, error) { return host, nil }
	}
	hostAPI := func(_ context.Context, host string) (string, error) { return apis[host], nil }
	mux := http.NewServeMux()
	mux.Handle(poddv1connect.NewPodServiceHandler(servedBy{host: "c"}, api.HandlerOptions()))
	server := httptest.NewUnstartedServer(newRouter("c", believes("a"), hostAPI, mux))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	c.apis["c"] = server.Listener.Addr().String()
	c.pods["alice"] = "c"
	if err := c.stop(t, "a", "alice"); !strings.Contains(err.Error(), "served by c") {
		t.Errorf("got %v, want it served where it was passed on to", err)
	}
}

// TestRouterStreams has a conversation by way of another host: each message
// must get through before the next is sent.
func TestRouterStreams(t *testing.T) {
	c := newRoutedCluster(t, "a", "b")
	c.pods["bob"] = "b"
	stream := c.client(t, "a").Exec(t.Context())
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
	stream := c.client(t, "a").Exec(t.Context())
	if err := stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Start{Start: &poddv1.ExecStart{Pod: "bob"}}}); err != nil {
		t.Fatal(err)
	}
	if reply, err := stream.Receive(); err != nil || string(reply.GetStdout()) != "b bob" {
		t.Fatalf("reply %v, error %v", reply, err)
	}
	c.servers["b"].CloseClientConnections()
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
