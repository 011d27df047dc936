package workload

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// KeepAliveConfig says which connections to keep, and how busy.
type KeepAliveConfig struct {
	URL  string
	Dial DialFunc
	// Connections is how many; 0 means one.
	Connections int
	// Interval is between two requests on a connection; 0 means 100 ms.
	Interval time.Duration
}

// KeepAlive is an HTTP client with several persistent connections, each of
// which it uses again and again and must never have to replace.
type KeepAlive struct {
	*Silence
	*stopper
	config KeepAliveConfig

	mu     sync.Mutex
	result KeepAliveResult
}

// KeepAliveResult is what a KeepAlive has seen so far.
type KeepAliveResult struct {
	Connections int   `json:"connections"`
	Responses   int64 `json:"responses"`
	// LongestSilence is between two responses on any of the connections.
	LongestSilence time.Duration `json:"longestSilence"`
	// LongestResponse is the longest time from a request to its response.
	LongestResponse time.Duration `json:"longestResponse"`
}

// NewKeepAlive returns a client that does nothing before Run.
func NewKeepAlive(c KeepAliveConfig) *KeepAlive {
	if c.Connections == 0 {
		c.Connections = 1
	}
	if c.Interval == 0 {
		c.Interval = 100 * time.Millisecond
	}
	return &KeepAlive{Silence: newSilence(), stopper: newStopper(), config: c}
}

// Run sends requests until Stop. It returns the first error: a response that
// is not 200, or a connection that was closed.
func (k *KeepAlive) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range k.config.Connections {
		wg.Go(func() {
			if err := k.connection(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (k *KeepAlive) connection(ctx context.Context) error {
	conn, err := dialHTTP(ctx, k.config.Dial, k.config.URL)
	if err != nil {
		return err
	}
	defer conn.close()
	k.mu.Lock()
	k.result.Connections++
	k.mu.Unlock()
	for !k.stopped() && ctx.Err() == nil {
		began := time.Now()
		if err := conn.get(); err != nil {
			return ctxErr(ctx, fmt.Errorf("keep-alive connection: %w", err))
		}
		k.mark()
		k.mu.Lock()
		k.result.Responses++
		k.result.LongestResponse = max(k.result.LongestResponse, time.Since(began))
		k.mu.Unlock()
		k.pause(ctx, k.config.Interval)
	}
	return nil
}

// Result returns what was seen so far. It may be called at any time.
func (k *KeepAlive) Result() KeepAliveResult {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.result.LongestSilence = k.Longest()
	return k.result
}

// Idle is a number of HTTP connections on which nothing happens until Check.
type Idle struct {
	conns []*httpConn
}

// OpenIdle makes n connections to the server of url, with one request on each
// so that the server has accepted it. Close them after use.
func OpenIdle(ctx context.Context, dial DialFunc, url string, n int) (*Idle, error) {
	idle := &Idle{}
	for range n {
		conn, err := dialHTTP(ctx, dial, url)
		if err != nil {
			idle.Close()
			return nil, err
		}
		idle.conns = append(idle.conns, conn)
		if err := conn.get(); err != nil {
			idle.Close()
			return nil, fmt.Errorf("idle connection %d: %w", len(idle.conns), err)
		}
	}
	return idle, nil
}

// Check sends a request on every connection and returns how many are alive. It
// ends early when ctx is done.
func (i *Idle) Check(ctx context.Context) (alive int, err error) {
	for n, conn := range i.conns {
		if ctx.Err() != nil {
			return alive, context.Cause(ctx)
		}
		if e := conn.get(); e != nil {
			err = fmt.Errorf("idle connection %d of %d: %w", n+1, len(i.conns), e)
			continue
		}
		alive++
	}
	return alive, err
}

// Close closes the connections.
func (i *Idle) Close() {
	for _, conn := range i.conns {
		conn.close()
	}
}
