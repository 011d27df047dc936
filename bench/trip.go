package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"podd/bench/measure"
	"podd/lab"
)

// The figures of a move.
const (
	silence   = "silence"
	freeze    = "freeze"
	excision  = "excision"
	insertion = "insertion"
	total     = "total"
	sent      = "sent"
	resident  = "resident"
)

// vehicle moves something from host to host.
type vehicle interface {
	// start starts what is to be moved, on the first host, and returns the
	// address that clients connect to.
	start(ctx context.Context) (netip.Addr, error)
	move(ctx context.Context) (measure.Values, error)
	// stop removes it; it may not have been started, or only in part.
	stop(ctx context.Context) error
}

// passenger is the client's view of what is moved.
type passenger interface {
	// board connects to an address.
	board(ctx context.Context, l *lab.Lab, address netip.Addr) error
	// depart begins to measure, arrive ends it: what happens in between
	// is in the figures that arrive returns.
	depart(ctx context.Context) error
	arrive(ctx context.Context) (measure.Values, error)
	// leave checks that all is as it should be, and disconnects.
	leave(ctx context.Context) error
	// abandon disconnects.
	abandon()
}

// trip is a contender that moves one thing again and again, with one
// connection that must last.
type trip struct {
	vehicle
	passenger
	lab     *lab.Lab
	started bool
}

// errStays means that what should have been moved has not been, and goes on
// where it was, with its client.
var errStays = errors.New("it was not moved")

// tripTimeout bounds one move with everything around it.
const tripTimeout = 2 * time.Minute

// once is measure.Contender's Once. After an error it begins anew with the next
// call, unless all is as before.
func (t *trip) once(ctx context.Context) (measure.Values, error) {
	bounded, cancel := context.WithTimeout(ctx, tripTimeout)
	defer cancel()
	values, err := t.measure(bounded)
	if errors.Is(err, errStays) && t.started {
		return nil, err
	}
	if err != nil {
		return nil, errors.Join(err, t.abort(ctx))
	}
	return values, nil
}

// begin is the part of once that comes before the first move.
func (t *trip) begin(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, tripTimeout)
	defer cancel()
	if err := t.setUp(bounded); err != nil {
		return errors.Join(err, t.abort(ctx))
	}
	return nil
}

func (t *trip) setUp(ctx context.Context) error {
	if t.started {
		return nil
	}
	address, err := t.start(ctx)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	if err := t.board(ctx, t.lab, address); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	t.started = true
	return nil
}

func (t *trip) measure(ctx context.Context) (measure.Values, error) {
	if err := t.setUp(ctx); err != nil {
		return nil, err
	}
	if err := t.depart(ctx); err != nil {
		return nil, fmt.Errorf("before the move: %w", err)
	}
	values, err := t.move(ctx)
	if err != nil && !errors.Is(err, errStays) {
		return nil, fmt.Errorf("moving: %w", err)
	}
	seen, arriveErr := t.arrive(ctx)
	if arriveErr != nil {
		t.started = false
		return nil, errors.Join(err, fmt.Errorf("after the move: %w", arriveErr))
	}
	if err != nil {
		return nil, fmt.Errorf("moving: %w", err)
	}
	maps.Copy(values, seen)
	return values, nil
}

// abort ends the trip without looking at what was moved.
func (t *trip) abort(ctx context.Context) error {
	t.abandon()
	t.started = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	return t.stop(ctx)
}

// end checks what was moved and removes it.
func (t *trip) end(ctx context.Context) error {
	if !t.started {
		return nil
	}
	err := t.leave(ctx)
	return errors.Join(err, t.abort(ctx))
}

// entry is a trip in a work: by whom, and for what if it is another work than
// that of the others, in every how many rounds if not in each, and whether it is
// not worth warming up.
type entry struct {
	by    string
	trip  *trip
	work  string
	every int
	cold  bool
}

// trips does a work by several contenders that each move a thing of their own.
func (b *bench) trips(ctx context.Context, work string, repetitions int, entries ...entry) error {
	var contenders []measure.Contender
	for _, e := range entries {
		contenders = append(contenders, measure.Contender{Name: e.by, Work: e.work, Every: e.every, Cold: e.cold, Once: e.trip.once})
	}
	if b.wants(work) {
		b.embark(ctx, entries)
	}
	err := b.workTimes(ctx, work, repetitions, contenders...)
	for _, e := range entries {
		if endErr := e.trip.end(ctx); endErr != nil {
			if ctx.Err() == nil {
				b.record.Fail(measure.Failure{Work: work, Contender: e.by, Reason: "after all: " + endErr.Error()})
			}
			b.log.Warn("ending a work", "work", work, "by", e.by, "error", endErr)
		}
	}
	return err
}

// embark starts what is to be moved, all at once, since some of it takes its time.
// What fails is tried again in its turn, and then it counts.
func (b *bench) embark(ctx context.Context, entries []entry) {
	var all sync.WaitGroup
	for _, e := range entries {
		if b.contenders.MatchString(e.by) {
			all.Go(func() {
				if err := e.trip.begin(ctx); err != nil {
					b.log.Warn("starting what is to be moved", "by", e.by, "error", err)
				}
			})
		}
	}
	all.Wait()
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
