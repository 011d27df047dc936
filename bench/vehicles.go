package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/lab"
	"podd/pod"
)

// sides are the hosts that everything moves between.
var sides = [2]string{"a", "b"}

// byPodd moves a pod with podctl.
type byPodd struct {
	*bench
	name string
	// args are podctl run's after the name; flags are podctl move's.
	args, flags []string
	side        int
}

func (v *byPodd) start(ctx context.Context) (netip.Addr, error) {
	v.side = 0
	args := append([]string{"run", "-d", "--host", sides[0], "--name", v.name}, v.args...)
	if _, err := v.podctl(ctx, args...); err != nil {
		return netip.Addr{}, err
	}
	var p podView
	err := v.podctlJSON(ctx, &p, "inspect", v.name)
	return p.PublicAddress, err
}

func (v *byPodd) move(ctx context.Context) (measure.Values, error) {
	from, to := sides[v.side], sides[1-v.side]
	before, err := transmitted(v.lab, from)
	if err != nil {
		return nil, err
	}
	var m moveView
	if err := v.carryOut(ctx, &m, to); err != nil {
		return nil, err
	}
	if m.State != pod.MoveDone || m.Receipt == nil {
		return nil, fmt.Errorf("the move is %q", m.State)
	}
	after, err := transmitted(v.lab, from)
	if err != nil {
		return nil, err
	}
	v.side = 1 - v.side
	return measure.Values{
		excision: m.Receipt.ExcisionMs, insertion: m.Receipt.InsertionMs, total: m.Receipt.TotalMs, sent: float64(after - before),
	}, nil
}

// carryOut moves the pod. A pod that can't be moved at the moment, because one
// of its processes waits for the disk, is asked for again.
func (v *byPodd) carryOut(ctx context.Context, m *moveView, to string) error {
	const attempts, between = 20, 500 * time.Millisecond
	for n := 1; ; n++ {
		err := v.podctlJSON(ctx, m, "move", append(append([]string{}, v.flags...), v.name, to)...)
		switch {
		case err == nil:
			return nil
		case strings.Contains(err.Error(), "can't be moved now") && n < attempts:
			if err := pause(ctx, between); err != nil {
				return err
			}
		case strings.Contains(err.Error(), "goes on running on "+sides[v.side]):
			return fmt.Errorf("%w: %w", errStays, err)
		default:
			return err
		}
	}
}

func (v *byPodd) stop(ctx context.Context) error {
	_, err := v.podctl(ctx, "rm", "--force", v.name)
	if err != nil && strings.Contains(err.Error(), "not found") {
		return nil // it was never made
	}
	return err
}

// transmitted counts the bytes that a host of the lab has sent.
func transmitted(l *lab.Lab, host string) (n uint64, err error) {
	err = l.Do(host, func() error {
		device, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		n = device.Attrs().Statistics.TxBytes
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("counting what host %s has sent: %w", host, err)
	}
	return n, nil
}

// byPeer moves a container with runc or podman.
type byPeer struct {
	bench  *bench
	link   *peer.Link
	number int
	name   string
	// make returns what moves over a link, root is its root file system.
	make func(k *peer.Link, root hostRoot) container
	// onHost is true when that is the machine's own, below a writable layer.
	onHost bool
	root   hostRoot
	container
}

// container is peer.Runc or peer.Podman.
type container interface {
	Start(context.Context) error
	Move(context.Context) (peer.Times, error)
	Stop(context.Context) error
}

func (v *byPeer) start(ctx context.Context) (netip.Addr, error) {
	var err error
	if v.link, err = peer.NewLink(v.bench.lab, v.name, v.number, sides); err != nil {
		return netip.Addr{}, err
	}
	if v.onHost {
		if v.root, err = mountHostRoot(filepath.Join(v.bench.dir, "root-"+v.name)); err != nil {
			return netip.Addr{}, err
		}
	}
	v.container = v.make(v.link, v.root)
	return v.link.Address, v.Start(ctx)
}

func (v *byPeer) move(ctx context.Context) (measure.Values, error) {
	t, err := v.Move(ctx)
	if errors.Is(err, peer.ErrNotDumped) {
		err = fmt.Errorf("%w: %w", errStays, err)
	}
	return measure.Values{
		excision: milliseconds(t.Checkpoint + t.Copy), insertion: milliseconds(t.Restore), total: milliseconds(t.Total()), sent: float64(t.Bytes),
	}, err
}

func (v *byPeer) stop(ctx context.Context) error {
	var errs []error
	if v.container != nil {
		errs = append(errs, v.Stop(ctx))
		v.container = nil
	}
	if v.link != nil {
		errs = append(errs, v.link.Close())
		v.link = nil
	}
	if v.onHost {
		errs = append(errs, v.root.unmount())
	}
	return errors.Join(errs...)
}

// cycle is CRIU alone, which moves nothing but takes the same time.
type cycle struct{ *peer.CRIU }

func (c cycle) Move(ctx context.Context) (peer.Times, error) { return c.Cycle(ctx) }
