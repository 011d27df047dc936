package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
)

var (
	// errDetached ends a session whose user typed the detach keys.
	errDetached = errors.New("detached")
	// errMoving is why a stream about a pod ended that left its host.
	errMoving = errors.New("the pod is still moving")
)

// session connects podctl's terminal or standard streams to a command in a pod
// until the command ends. When the pod moves it connects again, by itself.
type session struct {
	*podctl
	client *client
	pod    string
	// tty says that the command has a terminal, input that it reads from podctl.
	tty, input bool
	detachKeys []byte
	// proxySignals passes signals that podctl gets on to the pod. Without a
	// terminal only: there, keys are passed on as they are.
	proxySignals bool
	// open opens the next stream; it knows how to go on where the last one ended.
	open func(ctx context.Context, window *poddv1.WindowSize) (duplex, error)
	// note is told every message, so that open can go on from there.
	note func(message)

	queue *inputQueue
	// sending guards stream, the one input and window sizes go to.
	sending sync.Mutex
	stream  duplex
}

// run returns the command's exit code. The terminal is as it was before.
func (s *session) run(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.queue = newInputQueue()
	var tasks sync.WaitGroup
	defer func() {
		cancel(nil)
		s.queue.close()
		tasks.Wait()
	}()

	if s.tty && s.input {
		restore, err := rawTerminal(s.stdin)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	if s.input {
		reader, err := newStoppableReader(s.stdin)
		if err != nil {
			return 0, err
		}
		defer reader.stop()
		read := func() {
			defer reader.close()
			if err := s.readInput(reader); err != nil {
				cancel(err)
			}
		}
		if reader.file != nil {
			tasks.Go(read)
		} else {
			go read() // a reader that is no file can't be stopped: its read just ends
		}
	}
	if s.tty {
		defer s.watchWindow(&tasks)()
	}
	if s.proxySignals && !s.tty {
		defer s.passSignals(ctx, cancel, &tasks)()
	}

	code, err := s.stayConnected(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return code, err
}

// readInput copies standard input to the queue until it ends.
func (s *session) readInput(from io.Reader) error {
	detach := detacher{keys: s.detachKeys}
	buffer := make([]byte, inputChunk)
	for {
		n, err := from.Read(buffer)
		input, detached := buffer[:n], false
		if s.tty {
			input, detached = detach.feed(input)
		}
		if !s.queue.put(input) {
			return nil
		}
		switch {
		case detached:
			return errDetached
		case errors.Is(err, io.EOF):
			s.queue.end()
			return nil
		case err != nil:
			return fmt.Errorf("reading standard input: %w", err)
		}
	}
}

// stayConnected opens one stream after the other until the command has ended.
func (s *session) stayConnected(ctx context.Context) (int, error) {
	attempts := newAttempts()
	established := false
	for {
		attempts.begin()
		last, failure, err := s.connect(ctx, func(m message) {
			established = true
			if len(m.stdout)+len(m.stderr) > 0 {
				attempts.succeeded()
			}
		})
		switch {
		case err != nil:
			return 0, err
		case last.exited:
			return last.exitCode, nil
		case last.moved:
			if err := s.queue.rewind(last.accepted); err != nil {
				return 0, err
			}
			failure = errMoving
		case !established || !s.client.passing(ctx, s.pod, failure):
			return 0, failure
		}
		if err := attempts.wait(ctx, failure); err != nil {
			return 0, err
		}
	}
}

// connect runs one stream to its end and returns the last message. failure is
// the stream's, err a local one, such as output that can't be written.
func (s *session) connect(ctx context.Context, established func(message)) (last message, failure, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var window *poddv1.WindowSize
	if s.tty {
		window = windowSize(s.stdout)
	}
	stream, failure := s.open(ctx, window)
	if failure != nil {
		cancel()
		return message{}, failure, nil
	}
	s.setStream(stream)
	var sender sync.WaitGroup
	number := s.queue.begin()
	sender.Go(func() { s.sendInput(number) })
	sender.Go(func() {
		// net/http heeds a context only while it writes or waits for headers; a
		// request body that has nothing to write must be closed for it.
		<-ctx.Done()
		stream.closeRequest()
	})
	defer func() {
		s.queue.halt() // stops the sender when it waits for input
		cancel()       // and when it waits for the network
		sender.Wait()
		s.setStream(nil)
		stream.close()
	}()

	for heard := false; ; heard = true {
		m, failure := stream.receive()
		if errors.Is(failure, io.EOF) {
			failure = errors.New("the stream ended before the command")
		}
		if failure != nil && !heard {
			// podd says something before it passes input on, so what was
			// sent on this stream has not got to the command.
			s.queue.halt()
			err = s.queue.rewind(0)
		}
		if failure != nil {
			return message{}, failure, err
		}
		established(m)
		s.note(m)
		if _, err := s.stdout.Write(m.stdout); err != nil {
			return message{}, nil, fmt.Errorf("writing to standard output: %w", err)
		}
		if _, err := s.stderr.Write(m.stderr); err != nil {
			return message{}, nil, fmt.Errorf("writing to standard error: %w", err)
		}
		if m.exited || m.moved {
			return m, nil, nil
		}
	}
}

func (s *session) setStream(stream duplex) {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.stream = stream
}

// send does one send on the current stream, if there is one.
func (s *session) send(do func(duplex) error) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.stream == nil {
		return nil
	}
	return do(s.stream)
}

// sendInput sends a stream what the queue has for it. An error ends it: the
// receiving side learns the reason.
func (s *session) sendInput(stream int) {
	if !s.input {
		return
	}
	for {
		chunk, end, ok := s.queue.take(stream)
		if !ok {
			return
		}
		if end {
			_ = s.send(duplex.sendEndOfInput)
			return
		}
		if err := s.send(func(d duplex) error { return d.sendStdin(chunk) }); err != nil {
			return
		}
	}
}

// watchWindow sends the terminal's size whenever it changes, until stop.
func (s *session) watchWindow(tasks *sync.WaitGroup) (stop func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	tasks.Go(func() {
		for range changes {
			if size := windowSize(s.stdout); size != nil {
				// A stream that broke gets the size when it is opened again.
				_ = s.send(func(d duplex) error { return d.sendWindow(size) })
			}
		}
	})
	return func() {
		signal.Stop(changes)
		close(changes)
	}
}
