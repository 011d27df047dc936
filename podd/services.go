package podd

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/pod"
	"podd/version"
)

// DefaultStopTimeout is how long a pod has to end before it is killed.
const DefaultStopTimeout = 10 * time.Second

type podService struct {
	d *Daemon
}

func (s *podService) CreatePod(ctx context.Context, r *connect.Request[poddv1.CreatePodRequest]) (*connect.Response[poddv1.CreatePodResponse], error) {
	p, err := s.d.create(ctx, api.SpecFromProto(r.Msg.GetSpec()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.CreatePodResponse{Pod: api.PodToProto(p)}), nil
}

func (s *podService) ListPods(ctx context.Context, _ *connect.Request[poddv1.ListPodsRequest]) (*connect.Response[poddv1.ListPodsResponse], error) {
	pods, err := s.d.dir.Pods(ctx)
	if err != nil {
		return nil, err
	}
	response := &poddv1.ListPodsResponse{}
	for _, p := range pods {
		response.Pods = append(response.Pods, api.PodToProto(p))
	}
	s.d.markHeld(ctx, response.Pods...)
	s.d.markArriving(ctx, response.Pods...)
	return connect.NewResponse(response), nil
}

func (s *podService) GetPod(ctx context.Context, r *connect.Request[poddv1.GetPodRequest]) (*connect.Response[poddv1.GetPodResponse], error) {
	p, err := s.d.dir.Pod(ctx, r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	response := &poddv1.GetPodResponse{Pod: api.PodToProto(p)}
	s.d.markHeld(ctx, response.Pod)
	s.d.markArriving(ctx, response.Pod)
	return connect.NewResponse(response), nil
}

func (s *podService) WaitPod(ctx context.Context, r *connect.Request[poddv1.WaitPodRequest]) (*connect.Response[poddv1.WaitPodResponse], error) {
	code, err := s.d.wait(ctx, r.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.WaitPodResponse{ExitCode: int32(code)}), nil
}

func (s *podService) StopPod(ctx context.Context, r *connect.Request[poddv1.StopPodRequest]) (*connect.Response[poddv1.StopPodResponse], error) {
	timeout := DefaultStopTimeout
	if t := r.Msg.GetTimeout(); t != nil {
		timeout = t.AsDuration()
	}
	if err := s.d.stop(ctx, r.Msg.GetPod(), timeout); err != nil {
		return nil, err
	}
	response := &poddv1.StopPodResponse{}
	// One that is removed on exit may be gone already.
	if p, err := s.d.dir.Pod(ctx, r.Msg.GetPod()); err == nil {
		response.ExitCode = int32(p.ExitCode)
	}
	return connect.NewResponse(response), nil
}

func (s *podService) KillPod(ctx context.Context, r *connect.Request[poddv1.KillPodRequest]) (*connect.Response[poddv1.KillPodResponse], error) {
	signal := r.Msg.GetSignal()
	if signal < 1 || signal > lastSignal {
		return nil, fmt.Errorf("%w: signal %d: want 1 to %d", pod.ErrInvalid, signal, lastSignal)
	}
	if err := s.d.kill(ctx, r.Msg.GetPod(), unix.Signal(signal)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.KillPodResponse{}), nil
}

func (s *podService) RemovePod(ctx context.Context, r *connect.Request[poddv1.RemovePodRequest]) (*connect.Response[poddv1.RemovePodResponse], error) {
	if err := s.d.removePod(ctx, r.Msg.GetPod(), r.Msg.GetForce()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.RemovePodResponse{}), nil
}

type hostService struct {
	daemon.Hosts
	d *Daemon
}

func (s *hostService) GetVersion(ctx context.Context, _ *connect.Request[poddv1.GetVersionRequest]) (*connect.Response[poddv1.GetVersionResponse], error) {
	host, err := s.d.dir.Host(ctx, s.d.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.GetVersionResponse{
		Version: version.String(), Host: host.Name, Kernel: host.Kernel, CriuVersion: int32(host.CRIU), Time: timestamppb.Now(),
	}), nil
}
