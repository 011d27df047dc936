package podd

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"podd/pod"
)

// progressInterval is how often a stage that sends bytes reports how many.
const progressInterval = 100 * time.Millisecond

// progress is one report of a move under way.
type progress struct {
	move    string
	stage   pod.Stage
	bytes   int64
	total   int64 // 0 when not known
	elapsed time.Duration
}

// stageClock measures the stages of one move and tells whoever listens.
type stageClock struct {
	log    *slog.Logger
	report func(progress)
	start  time.Time
	sent   atomic.Int64 // bytes in the current stage
	total  atomic.Int64

	mu      sync.Mutex
	move    string
	current pod.Stage
	since   time.Time
	done    []pod.StageTime
}

func newStageClock(log *slog.Logger, report func(progress)) *stageClock {
	now := time.Now()
	return &stageClock{log: log, report: report, start: now, since: now}
}

// begin ends the current stage and starts the next.
func (c *stageClock) begin(stage pod.Stage) {
	c.mu.Lock()
	c.finishLocked()
	c.current, c.since = stage, time.Now()
	c.mu.Unlock()
	c.log.Debug("stage of a move begins", "stage", stage)
	c.tell()
}

func (c *stageClock) finishLocked() {
	if c.current != "" {
		c.done = append(c.done, pod.StageTime{Stage: c.current, Duration: time.Since(c.since), Bytes: c.sent.Load()})
	}
	c.sent.Store(0)
	c.total.Store(0)
	c.current = ""
}

// stage is the one that was begun last.
func (c *stageClock) stage() pod.Stage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// finish ends the last stage and returns them all.
func (c *stageClock) finish() []pod.StageTime {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishLocked()
	return c.done
}

// opened says at once by which ID the move is known.
func (c *stageClock) opened(move string) {
	c.mu.Lock()
	c.move = move
	c.mu.Unlock()
	c.tell()
}

func (c *stageClock) tell() {
	if c.report == nil {
		return
	}
	c.mu.Lock()
	p := progress{move: c.move, stage: c.current}
	c.mu.Unlock()
	p.bytes, p.total, p.elapsed = c.sent.Load(), c.total.Load(), time.Since(c.start)
	c.report(p)
}

// add adds to the bytes of the current stage what was sent on another way.
func (c *stageClock) add(bytes int64) {
	c.sent.Add(bytes)
	c.tell()
}

// watch reports the bytes of the current stage until ctx is done.
func (c *stageClock) watch(ctx context.Context) {
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if c.sent.Load() > 0 {
				c.tell()
			}
		}
	}
}

// count makes w add what it writes to the bytes of the current stage.
func (c *stageClock) count(w io.Writer) io.Writer { return &countingWriter{w: w, n: &c.sent} }

type countingWriter struct {
	w io.Writer
	n *atomic.Int64
}

// SetWriteDeadline lets a writer that waits for the network be interrupted.
func (w *countingWriter) SetWriteDeadline(t time.Time) error {
	if d, ok := w.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return d.SetWriteDeadline(t)
	}
	return os.ErrNoDeadline
}

// Flush lets nothing stay in a buffer, if the writer has one.
func (w *countingWriter) Flush() error {
	if b, ok := w.w.(interface{ Flush() error }); ok {
		return b.Flush()
	}
	return nil
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n.Add(int64(n))
	return n, err
}
