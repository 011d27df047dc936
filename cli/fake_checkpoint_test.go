package cli_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/pod"
)

// fakeCheckpoints are what the server knows of checkpoint files.
type fakeCheckpoints struct {
	// confirmed is closed when the file under way is confirmed.
	confirmed chan struct{}
}

// The file is a real one, of a pod that has hardly anything. A pod called
// broken has its stream end in the middle, one called unsure after the file.
func (s *server) CheckpointPod(ctx context.Context, r *connect.Request[poddv1.CheckpointPodRequest], stream *connect.ServerStream[poddv1.CheckpointPodResponse]) error {
	name := r.Msg.GetPod()
	p, err := s.get(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	phase := p.record.Phase
	s.mu.Unlock()
	if phase != pod.PhaseRunning {
		return fmt.Errorf("pod %s: %w: it is %s", name, pod.ErrPhase, phase)
	}
	recipients := r.Msg.GetRecipients()
	if !r.Msg.GetOnlyRecipients() {
		recipients = append([]string{s.trust.store.Recipient()}, recipients...)
	}
	keys, err := archive.Recipients(recipients...)
	if err != nil {
		return fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	var sources []archive.Source
	for _, name := range []string{"pod", "memory"} {
		source, err := archive.Measure(name, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("secret " + name)), nil })
		if err != nil {
			return err
		}
		sources = append(sources, source)
	}
	header := archive.Header{
		ID: "4f1c09", Pod: name, Epoch: 3, Host: "a", CreatedAt: time.Now(), LeftRunning: r.Msg.GetLeaveRunning(),
		Kernel: "6.18.0", CPU: "A processor", CPUFlags: []string{"sse"}, CRIU: 40201, Version: "devel", Image: "host", Recipients: recipients,
	}
	var file bytes.Buffer
	signer := archive.Signer{Key: s.trust.store.Key(), Chain: s.trust.store.Chain()}
	if err := archive.Write(&file, header, sources, signer, keys...); err != nil {
		return err
	}
	confirmed := make(chan struct{})
	s.mu.Lock()
	s.checkpoints.confirmed = confirmed
	s.mu.Unlock()
	data := file.Bytes()
	if name == "broken" {
		data = data[:len(data)/2]
	}
	for _, message := range []*poddv1.CheckpointPodResponse{
		{Id: header.ID, Stage: "presync", Bytes: 10}, {Id: header.ID, Stage: "transfer", Data: data},
	} {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	if name == "broken" {
		return fmt.Errorf("%w: the disk broke", pod.ErrUnavailable)
	}
	if r.Msg.GetLeaveRunning() {
		return nil
	}
	if err := stream.Send(&poddv1.CheckpointPodResponse{Id: header.ID, Stage: "confirm"}); err != nil {
		return err
	}
	select {
	case <-confirmed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if name == "unsure" {
		return fmt.Errorf("%w: the directory went away", pod.ErrUnavailable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.record.Phase = pod.PhaseStopped
	return nil
}

func (s *server) ConfirmCheckpoint(_ context.Context, r *connect.Request[poddv1.ConfirmCheckpointRequest]) (*connect.Response[poddv1.ConfirmCheckpointResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Msg.GetId() != "4f1c09" || s.checkpoints.confirmed == nil {
		return nil, fmt.Errorf("%w: nothing to confirm", pod.ErrConflict)
	}
	close(s.checkpoints.confirmed)
	s.checkpoints.confirmed = nil
	return connect.NewResponse(&poddv1.ConfirmCheckpointResponse{}), nil
}

func (s *server) RestorePod(_ context.Context, stream *connect.ClientStream[poddv1.RestorePodRequest]) (*connect.Response[poddv1.RestorePodResponse], error) {
	if !stream.Receive() {
		return nil, stream.Err()
	}
	header := stream.Msg().GetHeader()
	if host := header.GetHost(); host != "" {
		if err := checkHost(host); err != nil {
			return nil, err
		}
	}
	var file bytes.Buffer
	for stream.Receive() {
		file.Write(stream.Msg().GetData())
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	envelope, err := archive.ReadEnvelope(&file)
	if err != nil {
		return nil, err
	}
	err = envelope.Verify(func(chain []byte, at time.Time) (*x509.Certificate, error) {
		_, leaf, err := s.trust.store.VerifyChain(chain, at)
		return leaf, err
	})
	if err != nil {
		return nil, err
	}
	if err := envelope.Check(&file, s.trust.store.Secret()); err != nil {
		return nil, err
	}
	name := envelope.Header.Pod
	if header.GetName() != "" {
		name = header.GetName()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.pods[name]; known != nil && known.record.Phase == pod.PhaseRunning {
		return nil, fmt.Errorf("%w: pod %s is running on host a", pod.ErrConflict, name)
	}
	return connect.NewResponse(&poddv1.RestorePodResponse{Pod: &poddv1.Pod{
		Spec: &poddv1.PodSpec{Name: name, Image: "host"}, Phase: string(pod.PhaseRunning),
		Binding: &poddv1.Binding{Host: "a", PublicAddress: "198.18.0.2", VirtualAddress: "100.64.0.2", Label: 9, Epoch: uint64(envelope.Header.Epoch) + 1},
	}}), nil
}
