package podd

import (
	"context"
	"sync"
)

// claims are the names of the pods that operations of this podd work on:
// creations, moves in and out, removals, the reconcile loop. Whoever has a
// name's claim may make and remove what this host has of that pod; all others
// leave it alone. The zero value is ready.
//
// A claim is taken before a localPod's mu, never while it is held.
type claims struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the claim ends
}

// try takes the claim on a name if nobody has it.
func (c *claims) try(name string) (release func(), ok bool) {
	release, _ = c.take(name)
	return release, release != nil
}

// wait takes the claim on a name as soon as nobody has it.
func (c *claims) wait(ctx context.Context, name string) (release func(), err error) {
	for {
		release, busy := c.take(name)
		if release != nil {
			return release, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *claims) take(name string) (release func(), busy <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if busy := c.held[name]; busy != nil {
		return nil, busy
	}
	if c.held == nil {
		c.held = map[string]chan struct{}{}
	}
	ended := make(chan struct{})
	c.held[name] = ended
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.held, name)
		close(ended)
	}, nil
}

// claim says that an operation works on what this host has, or will have, of a
// pod, until release is called. It waits for the operation under way.
func (d *Daemon) claim(ctx context.Context, name string) (release func(), err error) {
	return d.claims.wait(ctx, name)
}
