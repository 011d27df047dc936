package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"podd/bench/measure"
	"podd/bench/probe"
	"podd/bench/workload"
	"podd/demo"
	"podd/e2e/workload/vncclient"
	"podd/lab"
)

// How long a client speaks before its figures count, before the move, and
// after it: what is late, such as pages that are still missing, shows then.
const (
	warmUp = 100 * time.Millisecond
	before = 50 * time.Millisecond
	after  = 300 * time.Millisecond
)

// counting is the client of the server in package workload.
type counting struct {
	probe *probe.Probe
	// memory is the most that was resident. Later it may be less: what is not
	// touched after a move need not be mapped.
	memory uint64
}

func (c *counting) board(ctx context.Context, l *lab.Lab, address netip.Addr) error {
	conn, err := awaitPort(ctx, l, address, workload.Port)
	if err != nil {
		return err
	}
	c.probe, c.memory = probe.New(conn, probe.Counting{}), 0
	return nil
}

func (c *counting) depart(ctx context.Context) error {
	c.probe.Start()
	if err := pause(ctx, warmUp); err != nil {
		return err
	}
	if _, err := c.probe.Stop(ctx); err != nil {
		return err
	}
	memory, err := probe.AskWord(ctx, c.probe, workload.AskMemory)
	if err != nil {
		return err
	}
	c.memory = max(c.memory, memory)
	// That forgets the time when it was idle.
	if _, err := probe.AskWord(ctx, c.probe, workload.AskGap); err != nil {
		return err
	}
	c.probe.Start()
	return pause(ctx, before)
}

func (c *counting) arrive(ctx context.Context) (measure.Values, error) {
	if err := pause(ctx, after); err != nil {
		return nil, err
	}
	longest, err := c.probe.Stop(ctx)
	if err != nil {
		return nil, err
	}
	gap, err := probe.AskWord(ctx, c.probe, workload.AskGap)
	if err != nil {
		return nil, err
	}
	return measure.Values{
		silence: milliseconds(longest), freeze: milliseconds(time.Duration(gap)), resident: float64(c.memory),
	}, nil
}

func (c *counting) leave(ctx context.Context) error {
	right, err := probe.AskWord(ctx, c.probe, workload.AskCheck)
	if err != nil {
		return err
	}
	if right != 1 {
		return errors.New("the server's memory is not what it should be")
	}
	if err := c.probe.Err(); err != nil {
		return fmt.Errorf("the connection: %w", err)
	}
	return nil
}

func (c *counting) abandon() {
	if c.probe != nil {
		// It may be broken, which is why it is abandoned.
		_ = c.probe.Close()
		c.probe = nil
	}
}

// viewing is the viewer of a desktop, whose picture changes 50 times a second.
type viewing struct {
	// settle is how long the desktop takes until all of it has started.
	settle time.Duration
	viewer *vncclient.Client
}

func (c *viewing) board(ctx context.Context, l *lab.Lab, address netip.Addr) error {
	conn, err := awaitPort(ctx, l, address, demo.DesktopPort)
	if err != nil {
		return err
	}
	if c.viewer, err = vncclient.Connect(ctx, conn); err != nil {
		return err
	}
	return pause(ctx, c.settle)
}

func (c *viewing) depart(ctx context.Context) error {
	if err := c.viewer.WaitUpdates(ctx, 10); err != nil {
		return err
	}
	c.viewer.ResetSilence()
	return nil
}

func (c *viewing) arrive(ctx context.Context) (measure.Values, error) {
	if err := pause(ctx, after); err != nil {
		return nil, err
	}
	if err := c.viewer.WaitUpdates(ctx, 10); err != nil {
		return nil, err
	}
	return measure.Values{silence: milliseconds(c.viewer.Stats().Silence)}, nil
}

func (c *viewing) leave(context.Context) error { return c.viewer.Err() }

func (c *viewing) abandon() {
	if c.viewer != nil {
		_ = c.viewer.Close() // it may be broken, which is why it is abandoned
		c.viewer = nil
	}
}
