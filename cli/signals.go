package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// signalError is the cause of a context that a signal ended.
type signalError struct{ number unix.Signal }

func (e signalError) Error() string { return "ended by " + unix.SignalName(e.number) }

// ending are the signals that end podctl unless a command takes them.
var ending = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}

// signals turns the first ending signal into the end of the context, so that
// terminals are restored and streams closed; a second one kills podctl. A
// command that passes signals on takes them over.
type signals struct {
	arrived chan os.Signal
	cancel  context.CancelCauseFunc
	quit    chan struct{}
	done    sync.WaitGroup

	mu    sync.Mutex
	taker func(unix.Signal)
}

func watchSignals(ctx context.Context) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &signals{arrived: make(chan os.Signal, 16), cancel: cancel, quit: make(chan struct{})}
	s.listen(ending)
	s.done.Add(1)
	go s.dispatch()
	return ctx, s
}

// listen asks for signals, but for those that podctl was started with ignored
// (nohup).
func (s *signals) listen(list []os.Signal) {
	for _, sig := range list {
		if !signal.Ignored(sig) {
			signal.Notify(s.arrived, sig)
		}
	}
}

func (s *signals) dispatch() {
	defer s.done.Done()
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.arrived:
			number, ok := sig.(unix.Signal)
			if !ok {
				continue
			}
			if !s.give(number) {
				signal.Stop(s.arrived)
				s.cancel(signalError{number})
			}
		}
	}
}

// give hands a signal to the taker, if there is one.
func (s *signals) give(number unix.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taker != nil {
		s.taker(number)
	}
	return s.taker != nil
}

// take gives the ending signals and more to f until release is called. f
// must not wait for anything.
func (s *signals) take(f func(unix.Signal), more ...os.Signal) (release func()) {
	s.mu.Lock()
	s.taker = f
	s.mu.Unlock()
	s.listen(more)
	return func() {
		signal.Stop(s.arrived)
		s.mu.Lock()
		s.taker = nil
		s.mu.Unlock()
		s.listen(ending)
	}
}

// stop gives the signals back their usual meaning and ends the context.
func (s *signals) stop() {
	signal.Stop(s.arrived)
	close(s.quit)
	s.done.Wait()
	s.cancel(nil)
}

// parseSignal reads a signal's name, with or without SIG, or its number.
func parseSignal(text string) (unix.Signal, error) {
	if number, err := strconv.Atoi(text); err == nil && number > 0 && number <= 64 {
		return unix.Signal(number), nil
	}
	for _, name := range []string{strings.ToUpper(text), "SIG" + strings.ToUpper(text)} {
		if number := unix.SignalNum(name); number != 0 {
			return number, nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q: want a name such as TERM, or a number", text)
}
