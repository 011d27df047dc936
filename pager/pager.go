package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

const (
	// callTimeout bounds one attempt to ask the pager something, runTimeout all
	// attempts of Run.
	callTimeout = 5 * time.Second
	runTimeout  = 20 * time.Second
	retryCall   = 5 * time.Millisecond
	// silence is how long a pager that lives may say nothing before it is
	// replaced.
	silence = 15 * time.Second
	// A pager that dies more often than maxRestarts within restartWindow won't do
	// better the next time.
	maxRestarts   = 20
	restartWindow = time.Minute
)

// ErrLost means that the pod can never have all of its memory.
var ErrLost = errors.New("memory of the pod was lost")

// ErrStopped means that Stop or Close came first.
var ErrStopped = errors.New("the pager was given up")

// Pager is podd's handle of the process that fills a pod's memory. It is safe for
// concurrent use.
type Pager struct {
	o      Options
	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup
	done   chan struct{}

	streaming  sync.Mutex
	streamConn *net.UnixConn // over which processes are attached, until Verify

	sparing sync.Mutex
	spare   spare

	mu       sync.Mutex
	status   Status
	err      error
	finished bool
}

// Start starts the process; it connects to the source at once. The options' Dir
// exists and is empty.
func Start(ctx context.Context, o Options) (*Pager, error) {
	b, err := json.MarshalIndent(o, "", "  ")
	if err == nil {
		err = renameio.WriteFile(filepath.Join(o.Dir, optionsName), b, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the pager: %w", err)
	}
	return begin(ctx, o)
}

// Adopt finds the pager of a directory that a podd before this one has started,
// and replaces it if it is dead. The error wraps os.ErrNotExist if there was none.
func Adopt(ctx context.Context, dir string, log *slog.Logger) (*Pager, error) {
	o, err := readOptions(dir)
	if err != nil {
		return nil, err
	}
	o.Dir, o.Log = dir, log
	return begin(ctx, o)
}

func begin(ctx context.Context, o Options) (*Pager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pager{o: o, done: make(chan struct{}), spare: spare{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	m, err := p.remembered()
	if err == nil && !p.conclude(m) {
		err = p.ensure(ctx, m)
	}
	if err != nil {
		p.cancel()
		p.wg.Wait()
		return nil, err
	}
	p.wg.Go(p.supervise)
	return p, nil
}

// remembered reads what the pager wrote down; nothing if it never ran.
func (p *Pager) remembered() (meta, error) {
	m, err := readMeta(p.o.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return meta{}, nil
	}
	return m, err
}

// conclude ends the handle if there is nothing left to be filled.
func (p *Pager) conclude(m meta) bool {
	switch {
	case m.Final != nil:
		if err := killKeepers(p.o.Dir, process{}); err != nil { // the pager may have died before it did
			p.o.Log.Error("cleaning up after the pager", "dir", p.o.Dir, "error", err)
		}
		p.finish(*m.Final, nil)
	case m.Lost != "":
		p.mu.Lock()
		status := p.status
		p.mu.Unlock()
		status.State, status.Cause = StateLost, m.Lost
		p.finish(status, fmt.Errorf("%w: %s", ErrLost, m.Lost))
	default:
		return false
	}
	return true
}

func (p *Pager) finish(s Status, err error) {
	p.set(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.finished {
		p.finished, p.err = true, err
		p.sparing.Lock()
		p.spare.close()
		p.sparing.Unlock()
		close(p.done)
	}
}

func (p *Pager) set(s Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.finished {
		p.status = s
	}
}

// supervise follows the process and replaces it when it dies.
func (p *Pager) supervise() {
	var restarts []time.Time
	heard := time.Now()
	for p.ctx.Err() == nil {
		m, err := p.remembered()
		if err != nil {
			p.o.Log.Error("looking after the pager", "dir", p.o.Dir, "error", err)
		} else if p.conclude(m) {
			return
		}
		watching, stop := p.watchDeath(m.Pager)
		status, err := p.call(watching, request{Op: "watch", Last: p.Status()}, nil)
		dead := context.Cause(watching) == errDead
		stop()
		switch {
		case err == nil:
			heard = time.Now()
			p.set(status)
			continue
		case p.ctx.Err() != nil:
			return
		case !dead && time.Since(heard) < silence:
			p.pause()
			continue
		}
		if m, err = p.remembered(); err == nil && p.conclude(m) {
			return
		}
		if err == nil && m.Running && m.Pager.gone() && m.Keeper.gone() {
			p.giveUp(errLost) // and not only when another one has begun
			return
		}
		heard = time.Now()
		restarts = append(restarts, heard)
		if i := len(restarts) - maxRestarts; i > 0 && heard.Sub(restarts[i-1]) < restartWindow {
			p.giveUp(fmt.Errorf("the pager died %d times within %v; its log is in %s", maxRestarts, restartWindow, p.o.Dir))
			return
		}
		p.o.Log.Warn("the pager died; starting another", "dir", p.o.Dir, "process", m.Pager.PID)
		ctx, cancel := context.WithTimeout(p.ctx, runTimeout)
		if err := p.spawn(ctx); err != nil && p.ctx.Err() == nil {
			p.o.Log.Error("starting another pager", "dir", p.o.Dir, "error", err)
			p.pause()
		}
		cancel()
	}
}

// giveUp freezes the pod for good.
func (p *Pager) giveUp(cause error) {
	p.o.Log.Error("the pod's memory can't be filled; it stays frozen", "dir", p.o.Dir, "error", cause)
	m, err := openMeta(p.o.Dir)
	if err == nil {
		err = giveUp(m, freezer(p.o.FreezerDir), cause)
	}
	if err != nil {
		p.o.Log.Error("freezing the pod", "dir", p.o.Dir, "error", err)
	}
	status := p.Status()
	status.State, status.Cause = StateLost, cause.Error()
	p.finish(status, fmt.Errorf("%w: %w", ErrLost, cause))
}

func (p *Pager) pause() {
	select {
	case <-p.ctx.Done():
	case <-time.After(20 * retryCall):
	}
}

// Attach gives the pager the userfaultfd of a process that CRIU makes: pid is its
// number in the pod. The caller keeps its own descriptor, and closes it: while
// somebody else has one nothing reads as zeros when all is filled. Faults are
// served from now on. Verify says whether the pager has taken it. A process with
// that number from a restore that was given up is forgotten.
func (p *Pager) Attach(ctx context.Context, pid int, uffd *os.File) error {
	p.sparing.Lock()
	err := p.spare.keep(pid, uffd)
	p.sparing.Unlock()
	if err == nil {
		err = p.stream(ctx, pid, uffd)
	}
	if err != nil {
		return fmt.Errorf("attaching process %d to the pager: %w", pid, err)
	}
	return nil
}

// Verify is called when all processes are attached and stand still, before the
// commit. It waits until the source has said what memory there is, and makes sure
// that all of it can be filled; with complete it also waits until all of it is on
// this host. Then what changed last is filled, for a moment. Errors are reasons
// not to commit.
func (p *Pager) Verify(ctx context.Context, complete bool) error {
	if err := p.flush(); err != nil {
		return fmt.Errorf("verifying the pod's memory: attaching its processes: %w", err)
	}
	r := request{Op: "verify", Complete: complete, Wait: callTimeout / 2}
	for {
		_, err := p.ask(ctx, r, nil)
		if !errors.Is(err, errNotYet) || ctx.Err() != nil {
			if err != nil {
				return fmt.Errorf("verifying the pod's memory: %w", err)
			}
			return nil
		}
	}
}

// Run says that the pod runs, or is about to: a moment later everything is filled, and
// the store is released as that is done. Once it was called the restore can't be repeated.
func (p *Pager) Run() error {
	ctx, cancel := context.WithTimeout(p.ctx, runTimeout)
	defer cancel()
	if _, err := p.ask(ctx, request{Op: "run"}, nil); err != nil {
		return fmt.Errorf("having the pod's memory filled: %w", err)
	}
	p.sparing.Lock()
	defer p.sparing.Unlock()
	p.spare.close()
	return nil
}

// Status is the last that is known: it is updated whenever the state changes, and
// once a second.
func (p *Pager) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Ask asks for the status of this moment.
func (p *Pager) Ask(ctx context.Context) (Status, error) {
	s, err := p.ask(ctx, request{Op: "status"}, nil)
	if err == nil {
		p.set(s)
	}
	return p.Status(), err
}

// Done is closed when the memory is complete, or lost, or the pager was given up.
func (p *Pager) Done() <-chan struct{} { return p.done }

// Wait waits for Done: nil means that the pod has all of its memory, or has ended.
// The error wraps ErrLost or ErrStopped.
func (p *Pager) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close ends the handle and leaves the pager at work: for Adopt.
func (p *Pager) Close() {
	p.cancel()
	p.wg.Wait()
	p.streaming.Lock()
	defer p.streaming.Unlock()
	if p.streamConn != nil {
		p.streamConn.Close()
		p.streamConn = nil
	}
	p.finish(p.Status(), ErrStopped)
}

// Stop kills the pager. The pod must have been killed before, or must not run: what
// is missing reads as zeros from now on. The directory is the caller's to remove.
func (p *Pager) Stop() error {
	p.Close()
	return errors.Join(killPagers(p.o.Dir), killKeepers(p.o.Dir, process{}))
}
