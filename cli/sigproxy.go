package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// signalLimit is how long a signal is tried to be passed on.
const signalLimit = 20 * time.Second

// passSignals sends the signals that podctl gets to the pod's main command,
// until stop. When that fails the signal ends podctl, so that a pod that can't
// be reached does not hold the user.
func (s *session) passSignals(ctx context.Context, cancel context.CancelCauseFunc, tasks *sync.WaitGroup) (stop func()) {
	arrived := make(chan unix.Signal, 16)
	release := s.signals.take(func(number unix.Signal) {
		select {
		case arrived <- number:
		default: // sixteen are waiting: one more makes no difference
		}
	}, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	tasks.Go(func() {
		for number := range arrived {
			if err := s.passSignal(ctx, number); err != nil && ctx.Err() == nil {
				s.printError(fmt.Errorf("passing %s on to %s: %w", unix.SignalName(number), s.pod, err))
				cancel(signalError{number})
			}
		}
	})
	return func() {
		release()
		close(arrived)
	}
}

// passSignal sends one signal, also to a pod that is just moving. A pod that
// has ended needs none.
func (s *session) passSignal(ctx context.Context, number unix.Signal) error {
	attempts := newAttempts()
	attempts.limit = signalLimit
	for {
		attempts.begin()
		request := &poddv1.KillPodRequest{Pod: s.pod, Signal: int32(number)}
		_, err := s.client.pods.KillPod(ctx, connect.NewRequest(request))
		switch {
		case err == nil, errors.Is(err, pod.ErrNotFound):
			return nil
		case !s.client.passing(ctx, s.pod, err):
			if errors.Is(err, pod.ErrPhase) {
				return nil
			}
			return err
		}
		if err := attempts.wait(ctx, err); err != nil {
			return err
		}
	}
}
