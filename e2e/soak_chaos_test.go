//go:build e2e

package e2e

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/lab"
	"podd/pod"
)

// chaos makes random things fail, from the seed: what and when is the same in
// every run of it, though not what it meets.
type chaos struct {
	*soak
	random *rand.Rand
	// wait is for what is undone some time later.
	wait sync.WaitGroup
	// slots bounds how much fails at a time.
	slots chan struct{}
	// keepers start daemons again that have ended, as systemd would.
	keepers sync.WaitGroup
	stop    context.CancelFunc
}

// failTogether is how much fails at a time.
const failTogether = 2

func newChaos(s *soak) *chaos {
	ctx, stop := context.WithCancel(context.Background())
	c := &chaos{soak: s, random: rand.New(rand.NewPCG(seed(), 0x50a4)), slots: make(chan struct{}, failTogether), stop: stop}
	for _, node := range theLab.Daemons() {
		c.keepers.Go(func() { c.keep(ctx, node) })
	}
	s.t.Cleanup(func() { stop(); c.keepers.Wait() })
	return c
}

// keep starts a daemon again whenever it has ended.
func (c *chaos) keep(ctx context.Context, node string) {
	for ctx.Err() == nil {
		if err := theLab.Wait(ctx, node); err != nil {
			continue // ctx has ended
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause):
		}
		// It may end again, as long as the directory can't be reached.
		if err := theLab.Start(ctx, node); err != nil && !errors.Is(err, pod.ErrExists) && ctx.Err() == nil {
			c.t.Logf("%v", firstLine(err))
		}
	}
}

// restartPause is systemd's default RestartSec.
const restartPause = 100 * time.Millisecond

func firstLine(err error) string {
	for i, r := range err.Error() {
		if r == '\n' {
			return err.Error()[:i]
		}
	}
	return err.Error()
}

// soakLimits are those that moves are asked for with: most without any.
var soakLimits = [][]string{nil, nil, nil, nil, nil, nil, {"--timeout", "400ms"}, {"--max-downtime", "60ms"}}

// idle says that no move was done yet, or nothing made to fail.
func (c *chaos) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers["moved"] == 0 || len(c.faults) == 0
}

// run makes things happen for a time, and on a slow machine until something has
// happened.
func (c *chaos) run(d time.Duration) {
	hosts, daemons := theLab.HostNames(), theLab.Daemons()
	end := time.Now().Add(d)
	for (time.Now().Before(end) || c.idle() && time.Since(end) < soakPatience) && !c.t.Failed() {
		// All is drawn before anything is done: what happens must not change
		// what comes next.
		pause := time.Duration(100+c.random.IntN(700)) * time.Millisecond
		p := c.pods[c.random.IntN(len(c.pods))]
		target, by := hosts[c.random.IntN(len(hosts))], hosts[c.random.IntN(len(hosts))]
		what := c.random.IntN(100)
		node, other := daemons[c.random.IntN(len(daemons))], daemons[c.random.IntN(len(daemons))]
		lasts := time.Duration(500+c.random.IntN(11500)) * time.Millisecond
		moment := recovery.Moments[c.random.IntN(len(recovery.Moments))]
		victim := recovery.Victims[c.random.IntN(2)]
		c.move(p, target, by, soakLimits[c.random.IntN(len(soakLimits))]...)
		switch {
		case what < 3:
			c.fail("kill", func() { c.signal(node, unix.SIGKILL) }, 0, nil)
		case what < 5:
			c.fail("restart", func() { c.signal(node, unix.SIGTERM) }, 0, nil)
		case what < 8:
			c.fail("stop", func() { c.signal(node, unix.SIGSTOP) }, lasts, func() { c.signal(node, unix.SIGCONT) })
		case what < 13 && node != other:
			c.fail("partition", func() { c.must(theLab.Partition(node, other)) }, lasts, func() { c.must(theLab.Heal(node, other)) })
		case what < 20:
			c.fail("kill in a stage", func() { c.arm(hosts, moment.Point(victim)) }, 0, nil)
		}
		pass(pause)
	}
}

// fail does something, and undoes it after a time, unless enough fails already.
func (c *chaos) fail(what string, do func(), lasts time.Duration, undo func()) {
	select {
	case c.slots <- struct{}{}:
	default:
		return
	}
	c.faults[what]++
	do()
	c.wait.Go(func() {
		defer func() { <-c.slots }()
		pass(lasts)
		if undo != nil {
			undo()
		}
	})
}

// arm has whichever host comes to a point of a move next killed there.
func (c *chaos) arm(hosts []string, point string) {
	for _, host := range hosts {
		c.must(os.WriteFile(faultFile(host), []byte(point+" kill\n"), 0o600))
	}
}

func faultFile(node string) string { return filepath.Join(theLab.RunDir(node), "faults") }

// signal signals a daemon, if there is one to signal.
func (c *chaos) signal(node string, signal unix.Signal) {
	if err := theLab.Kill(node, signal); !errors.Is(err, pod.ErrNotFound) {
		c.must(err)
	}
}

func (c *chaos) must(err error) {
	if err != nil {
		c.t.Error(err)
	}
}

// rest undoes everything, and waits until all daemons are up.
func (c *chaos) rest() {
	c.t.Helper()
	c.wait.Wait()
	for _, node := range theLab.Daemons() {
		if err := os.Remove(faultFile(node)); !errors.Is(err, fs.ErrNotExist) {
			c.must(err)
		}
	}
	c.must(theLab.HealAll())
	c.stop()
	c.keepers.Wait()
	for _, node := range append([]string{lab.Proxy}, theLab.HostNames()...) {
		bringUp(c.t, node)
		// One that does not end, though it was told to, runs and serves nobody.
		until(c.t, "the daemon of "+node+" serves", func() error {
			conn, err := theLab.Dial(bounded(c.t), node, "tcp", theLab.API(node).String())
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	awaitHosts(c.t)
}
