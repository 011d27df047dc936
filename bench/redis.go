package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"time"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/bench/probe"
	"podd/e2e/workload"
	"podd/lab"
)

// What redis has before it is moved: values that no two are the same of.
const (
	redisPort   = 6379
	redisValues = 1 << 18
	redisValue  = 4 << 10 // bytes; in all 1 GiB
)

// redisArgs run redis without files.
var redisArgs = []string{"sh", "-c", `exec redis-server --bind 0.0.0.0 --protected-mode no --save "" --dir /tmp </dev/null >/dev/null 2>&1`}

// moveRedis moves a redis with 1 GiB, under load, by podd and runc.
func (m *mover) moveRedis(ctx context.Context, repetitions int) error {
	pod := &trip{
		vehicle:   &byPodd{bench: m.bench, name: "redis", flags: m.strategy, args: append([]string{"--"}, redisArgs...)},
		passenger: &loading{}, lab: m.lab,
	}
	container := &trip{vehicle: m.onHost("redis", func(c *peer.Container) { c.Args = redisArgs }), passenger: &loading{}, lab: m.lab}
	return m.trips(ctx, "redis, 1 GiB, under load", repetitions, entry{by: podd, trip: pod}, entry{by: runc, trip: container})
}

// loading is two clients of a redis: one that counts a key up every
// millisecond, and is measured, and one that writes and reads in pipelines.
type loading struct {
	probe   *probe.Probe
	lab     *lab.Lab
	address string
	loads   int
	load    *workload.Redis
	done    chan error
}

func (c *loading) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.lab.Dial(ctx, lab.Client, network, address)
}

func (c *loading) board(ctx context.Context, l *lab.Lab, address netip.Addr) error {
	conn, err := awaitPort(ctx, l, address, redisPort)
	if err != nil {
		return err
	}
	c.lab, c.address = l, net.JoinHostPort(address.String(), strconv.Itoa(redisPort))
	if err := fillRedis(conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	c.probe = probe.New(conn, probe.Redis{Key: "count"})
	return nil
}

// fillRedis writes the values, with a thousand commands on their way at most.
func fillRedis(conn net.Conn) error {
	const ahead = 1000
	random := rand.NewChaCha8([32]byte{1})
	value := make([]byte, redisValue)
	w, r := bufio.NewWriterSize(conn, 1<<20), bufio.NewReader(conn)
	const answer = "+OK\r\n"
	read := make([]byte, len(answer)*ahead)
	for i := range redisValues {
		random.Read(value) // never fails
		fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\nvalue-%07d\r\n$%d\r\n", len("value-")+7, i, len(value))
		w.Write(value)
		w.WriteString("\r\n")
		if (i+1)%ahead == 0 || i == redisValues-1 {
			n := i%ahead + 1
			if err := w.Flush(); err != nil {
				return fmt.Errorf("filling redis: %w", err)
			}
			if _, err := io.ReadFull(r, read[:n*len(answer)]); err != nil {
				return fmt.Errorf("filling redis: %w", err)
			}
		}
	}
	return nil
}

func (c *loading) depart(ctx context.Context) error {
	c.loads++
	c.load = workload.NewRedis(workload.RedisConfig{Address: c.address, Dial: c.dial, Prefix: fmt.Sprintf("load-%d-", c.loads)})
	c.done = make(chan error, 1)
	go func() { c.done <- c.load.Run(context.WithoutCancel(ctx)) }()
	if err := pause(ctx, warmUp); err != nil {
		return err
	}
	c.probe.Start()
	return pause(ctx, before)
}

func (c *loading) arrive(ctx context.Context) (measure.Values, error) {
	if err := pause(ctx, after); err != nil {
		return nil, err
	}
	longest, err := c.probe.Stop(ctx)
	if err := errors.Join(err, c.unload()); err != nil {
		return nil, err
	}
	return measure.Values{silence: milliseconds(longest)}, nil
}

// unload ends the load, which checks what it has read and written.
func (c *loading) unload() error {
	if c.load == nil {
		return nil
	}
	c.load.Stop()
	c.load = nil
	select {
	case err := <-c.done:
		return err
	case <-time.After(tripTimeout):
		return errors.New("the load does not end")
	}
}

func (c *loading) leave(context.Context) error { return c.probe.Err() }

func (c *loading) abandon() {
	if c.probe != nil {
		_ = c.probe.Close() // it may be broken, which is why it is abandoned
		c.probe = nil
	}
	_ = c.unload()
}
