package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
)

// server answers podctl's calls out of memory, so that what podctl prints and
// how it exits can be tested without hosts. Its "programs" are a few words that
// process.start knows. Real podds are the business of the end-to-end tests.
type server struct {
	poddv1connect.UnimplementedPodServiceHandler
	poddv1connect.UnimplementedHostServiceHandler
	poddv1connect.UnimplementedImageServiceHandler
	poddv1connect.UnimplementedMoveServiceHandler
	poddv1connect.UnimplementedTrustServiceHandler

	trust *fakeTrust
	// tls is the address that is not a socket's.
	tls string

	mu          sync.Mutex
	pods        map[string]*fakePod
	sessions    map[string]*process
	images      []*poddv1.Image
	moves       []*pod.Move
	changed     chan struct{} // closed, and replaced, when a move changes
	deaf        bool          // moves that are cancelled go on
	next        int
	checkpoints fakeCheckpoints
	// routes are the route headers seen.
	routes []string
	// refusals is how many times a command is not gone on with: the next
	// streams break with some input in them and not a word to the client.
	refusals int
}

type fakePod struct {
	record pod.Pod
	main   *process
}

// startServer serves on a unix socket, and over TLS, until stop. The cluster's
// keys are beside the socket.
func startServer(socket string) (s *server, stop func(), err error) {
	s = &server{pods: map[string]*fakePod{}, sessions: map[string]*process{}}
	mux := http.NewServeMux()
	options := api.HandlerOptions()
	mux.Handle(poddv1connect.NewPodServiceHandler(s, options))
	mux.Handle(poddv1connect.NewHostServiceHandler(s, options))
	mux.Handle(poddv1connect.NewImageServiceHandler(s, options))
	mux.Handle(poddv1connect.NewMoveServiceHandler(s, options))
	mux.Handle(poddv1connect.NewTrustServiceHandler(s, options))
	if s.trust, err = newFakeTrust(filepath.Dir(socket) + "/cluster"); err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, err
	}
	handler := s.identify(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.routes = append(s.routes, r.Header.Get(api.RouteHeader))
		s.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	httpServer := &http.Server{Protocols: protocols, Handler: handler}
	address, stopTLS, err := s.serveTLS(handler)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	s.tls = address
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = httpServer.Serve(listener)
	}()
	return s, func() {
		httpServer.Close()
		<-served
		stopTLS()
	}, nil
}

func newServer(t *testing.T) (*server, string) {
	t.Helper()
	socket := t.TempDir() + "/podd.sock"
	s, stop, err := startServer(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s, socket
}

var hostAddress = map[string]string{"a": "10.10.1.2", "b": "10.10.2.2", "full": "10.10.3.2", "odd": "10.10.4.2"}

func checkHost(name string) error {
	if hostAddress[name] == "" && !slices.Contains(lingering, name) {
		return fmt.Errorf("%w: host %q", pod.ErrNotFound, name)
	}
	return nil
}

func (s *server) get(name string) (*fakePod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[name]; p != nil {
		p.main.mu.Lock()
		defer p.main.mu.Unlock()
		if p.main.ended && p.record.Phase == pod.PhaseRunning {
			p.record.Phase, p.record.ExitCode, p.record.StoppedAt = pod.PhaseStopped, p.main.code, time.Now()
		}
		return p, nil
	}
	return nil, fmt.Errorf("%w: pod %q", pod.ErrNotFound, name)
}

func (s *server) CreatePod(_ context.Context, r *connect.Request[poddv1.CreatePodRequest]) (*connect.Response[poddv1.CreatePodResponse], error) {
	spec := api.SpecFromProto(r.Msg.GetSpec())
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	host := r.Msg.GetHost()
	if host == "" {
		host = "a"
	}
	if err := checkHost(host); err != nil {
		return nil, err
	}
	if len(spec.Command) > 0 && spec.Command[0] == "nosuch" {
		return nil, errors.New(`starting the main command: exec: "nosuch": executable file not found in $PATH`)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[spec.Name] != nil {
		return nil, fmt.Errorf("%w: pod %q", pod.ErrExists, spec.Name)
	}
	s.next++
	p := &fakePod{main: newProcess(spec.Command, spec.TTY), record: pod.Pod{
		Spec: spec, Phase: pod.PhaseRunning, CreatedAt: time.Now(), StartedAt: time.Now(),
		Binding: pod.Binding{
			Virtual: netip.AddrFrom4([4]byte{100, 64, 0, byte(s.next)}), Public: netip.AddrFrom4([4]byte{198, 18, 0, byte(s.next)}),
			Host: host, Physical: netip.MustParseAddr(hostAddress[host]), Label: pod.Label(s.next), Epoch: 1,
		},
	}}
	s.pods[spec.Name] = p
	p.main.start()
	return connect.NewResponse(&poddv1.CreatePodResponse{Pod: api.PodToProto(&p.record)}), nil
}

func (s *server) ListPods(context.Context, *connect.Request[poddv1.ListPodsRequest]) (*connect.Response[poddv1.ListPodsResponse], error) {
	s.mu.Lock()
	var names []string
	for name := range s.pods {
		names = append(names, name)
	}
	s.mu.Unlock()
	out := &poddv1.ListPodsResponse{}
	for _, name := range names {
		if p, err := s.get(name); err == nil {
			out.Pods = append(out.Pods, p.message())
		}
	}
	return connect.NewResponse(out), nil
}

func (s *server) GetPod(_ context.Context, r *connect.Request[poddv1.GetPodRequest]) (*connect.Response[poddv1.GetPodResponse], error) {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.GetPodResponse{Pod: p.message()}), nil
}

func (s *server) WaitPod(ctx context.Context, r *connect.Request[poddv1.WaitPodRequest]) (*connect.Response[poddv1.WaitPodResponse], error) {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	code, err := p.main.wait(ctx)
	return connect.NewResponse(&poddv1.WaitPodResponse{ExitCode: int32(code)}), err
}

func (s *server) StopPod(ctx context.Context, r *connect.Request[poddv1.StopPodRequest]) (*connect.Response[poddv1.StopPodResponse], error) {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	p.main.signal(15)
	code, err := p.main.wait(ctx)
	return connect.NewResponse(&poddv1.StopPodResponse{ExitCode: int32(code)}), err
}

func (s *server) KillPod(_ context.Context, r *connect.Request[poddv1.KillPodRequest]) (*connect.Response[poddv1.KillPodResponse], error) {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	if !p.record.Phase.Live() {
		return nil, fmt.Errorf("%w: pod %s is %s", pod.ErrPhase, p.record.Name(), p.record.Phase)
	}
	p.main.signal(int(r.Msg.GetSignal()))
	return connect.NewResponse(&poddv1.KillPodResponse{}), nil
}

func (s *server) RemovePod(_ context.Context, r *connect.Request[poddv1.RemovePodRequest]) (*connect.Response[poddv1.RemovePodResponse], error) {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	if p.record.Phase.Live() && !r.Msg.GetForce() {
		return nil, fmt.Errorf("%w: it is %s", pod.ErrPhase, p.record.Phase)
	}
	p.main.signal(9)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, p.record.Name())
	return connect.NewResponse(&poddv1.RemovePodResponse{}), nil
}

func (s *server) Logs(ctx context.Context, r *connect.Request[poddv1.LogsRequest], stream *connect.ServerStream[poddv1.LogsResponse]) error {
	p, err := s.get(r.Msg.GetPod())
	if err != nil {
		return err
	}
	position := r.Msg.GetFrom()
	if position == nil {
		position = &poddv1.OutputPosition{Stdout: p.main.tail(r.Msg.GetTail())}
	}
	return p.main.follow(ctx, position, p.main.hops.count(), r.Msg.GetFollow(), func(o output) error {
		return stream.Send(&poddv1.LogsResponse{Stdout: o.stdout, Stderr: o.stderr, Position: o.position, Moved: o.moved})
	})
}

func (s *server) Attach(ctx context.Context, stream *connect.BidiStream[poddv1.AttachRequest, poddv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	p, err := s.get(first.GetStart().GetPod())
	if err != nil {
		return err
	}
	position := first.GetStart().GetFrom()
	if position == nil {
		position = p.main.position()
	}
	if err := stream.Send(&poddv1.AttachResponse{Position: position}); err != nil {
		return err
	}
	p.main.resize(first.GetStart().GetWindow())
	in, hop := p.main.input(), p.main.hops.count()
	go in.feed(func() ([]byte, *poddv1.WindowSize, bool, error) {
		m, err := stream.Receive()
		return m.GetStdin(), m.GetWindow(), m.GetEndOfInput(), err
	})
	defer in.stop()
	return p.main.follow(ctx, position, hop, true, func(o output) error {
		m := &poddv1.AttachResponse{Position: o.position}
		switch {
		case o.moved:
			m.Response, m.StdinAccepted = &poddv1.AttachResponse_Moved{Moved: true}, in.stop()
		case o.exited:
			m.Response = &poddv1.AttachResponse_ExitCode{ExitCode: int32(o.code)}
		case o.stderr != nil:
			m.Response = &poddv1.AttachResponse_Stderr{Stderr: o.stderr}
		default:
			m.Response = &poddv1.AttachResponse_Stdout{Stdout: o.stdout}
		}
		return stream.Send(m)
	})
}

func (s *server) Exec(ctx context.Context, stream *connect.BidiStream[poddv1.ExecRequest, poddv1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	p, err := s.get(start.GetPod())
	if err != nil {
		return err
	}
	if !p.record.Phase.Live() {
		return fmt.Errorf("%w: it is %s", pod.ErrPhase, p.record.Phase)
	}
	session := start.GetSession()
	s.mu.Lock()
	process := s.sessions[session]
	if session != "" && s.refusals > 0 {
		s.refusals--
		s.mu.Unlock()
		if _, err := stream.Receive(); err != nil {
			return err
		}
		return fmt.Errorf("%w: the host restarts", pod.ErrUnavailable)
	}
	if session == "" {
		s.next++
		session = fmt.Sprintf("session-%d", s.next)
		process = newProcess(start.GetCommand(), start.GetTty())
		process.hops = p.main.hops
		s.sessions[session] = process
		process.start()
	}
	s.mu.Unlock()
	if err := stream.Send(&poddv1.ExecResponse{Response: &poddv1.ExecResponse_Session{Session: session}}); err != nil {
		return err
	}
	process.resize(start.GetWindow())
	in, hop := process.input(), process.hops.count()
	go in.feed(func() ([]byte, *poddv1.WindowSize, bool, error) {
		m, err := stream.Receive()
		return m.GetStdin(), m.GetWindow(), m.GetEndOfInput(), err
	})
	defer in.stop()
	return process.follow(ctx, process.relayed(), hop, true, func(o output) error {
		process.relay(o.position)
		m := &poddv1.ExecResponse{}
		switch {
		case o.moved:
			m.Response, m.StdinAccepted = &poddv1.ExecResponse_Moved{Moved: true}, in.stop()
		case o.exited:
			m.Response = &poddv1.ExecResponse_ExitCode{ExitCode: int32(o.code)}
		case o.stderr != nil:
			m.Response = &poddv1.ExecResponse_Stderr{Stderr: o.stderr}
		default:
			m.Response = &poddv1.ExecResponse_Stdout{Stdout: o.stdout}
		}
		return stream.Send(m)
	})
}

func (s *server) ListHosts(context.Context, *connect.Request[poddv1.ListHostsRequest]) (*connect.Response[poddv1.ListHostsResponse], error) {
	out := &poddv1.ListHostsResponse{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, address := range hostAddress {
		if s.trust.removed[name] {
			continue
		}
		h := pod.Host{
			Name: name, Physical: netip.MustParseAddr(address), API: netip.MustParseAddrPort(address + ":7443"), Kernel: "6.18.0",
			CRIU: 40201, CPU: "Test CPU", Version: "0.1.0", MemoryBytes: 8 << 30, CPUs: 2, Alive: name != "odd",
		}
		out.Hosts = append(out.Hosts, api.HostToProto(&h, 1))
	}
	return connect.NewResponse(out), nil
}

func (s *server) GetVersion(context.Context, *connect.Request[poddv1.GetVersionRequest]) (*connect.Response[poddv1.GetVersionResponse], error) {
	return connect.NewResponse(&poddv1.GetVersionResponse{Version: "0.1.0", Host: "a", Kernel: "6.18.0", CriuVersion: 40201}), nil
}

func (s *server) ImportImage(_ context.Context, stream *connect.ClientStream[poddv1.ImportImageRequest]) (*connect.Response[poddv1.ImportImageResponse], error) {
	image := &poddv1.Image{Digest: "sha256:0123456789abcdef0123456789abcdef", Layers: 1, Host: "a"}
	var content strings.Builder
	for stream.Receive() {
		if h := stream.Msg().GetHeader(); h != nil {
			image.Name = h.GetName()
		}
		content.Write(stream.Msg().GetData())
	}
	if stream.Err() != nil {
		return nil, stream.Err()
	}
	if !strings.Contains(content.String(), "oci-layout") {
		return nil, fmt.Errorf("%w: neither an OCI layout nor a saved archive", pod.ErrInvalid)
	}
	image.Size = int64(content.Len())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, image)
	return connect.NewResponse(&poddv1.ImportImageResponse{Image: image}), nil
}

func (s *server) ListImages(context.Context, *connect.Request[poddv1.ListImagesRequest]) (*connect.Response[poddv1.ListImagesResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return connect.NewResponse(&poddv1.ListImagesResponse{Images: s.images}), nil
}

func (s *server) RemoveImage(_ context.Context, r *connect.Request[poddv1.RemoveImageRequest]) (*connect.Response[poddv1.RemoveImageResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.images, func(i *poddv1.Image) bool { return i.GetName() == r.Msg.GetName() })
	if i < 0 {
		return nil, fmt.Errorf("%w: image %q", pod.ErrNotFound, r.Msg.GetName())
	}
	s.images = slices.Delete(s.images, i, i+1)
	return connect.NewResponse(&poddv1.RemoveImageResponse{}), nil
}
