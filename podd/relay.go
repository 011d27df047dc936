package podd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"podd/daemon"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

const (
	// relayTimeout bounds how long it takes to reach a host through the proxy.
	relayTimeout = daemon.RelayWait + 5*time.Second
	// maxRelayed is how many connections this host fetches at the proxy at a
	// time. More are asked for by nobody.
	maxRelayed = 16
)

// peersFor is how the target of a move is reached; move is empty before it has
// begun. done is to be called when no more connections are needed.
func (d *Daemon) peersFor(strategy pod.Strategy, move string) (peers *daemon.Peers, done func()) {
	if strategy != pod.StrategyCheckpointServer {
		return d.cluster.Peers, func() {}
	}
	peers = d.through(move)
	return peers, peers.CloseIdle
}

// advise adds to the error of a move whose target the directory says is alive,
// and which can't be reached all the same, what helps if that is the network's
// fault.
func (d *Daemon) advise(err error, order moveOrder) error {
	if order.strategy == pod.StrategyCheckpointServer || !errors.Is(err, pod.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w; if hosts %s and %s can't reach each other, but both the proxy, move the pod with --strategy %s",
		err, d.Name, order.target, pod.StrategyCheckpointServer)
}

// through reaches other hosts through the proxy, for a move or, if that is
// empty, for the questions before one. For each connection a request is written
// into the directory, where the other host sees it; then both go to the proxy,
// which lets them talk. What they say is TLS between the two hosts, as if one had
// connected to the other.
func (d *Daemon) through(move string) *daemon.Peers {
	return d.cluster.Peers.Through(func(ctx context.Context, kind trust.Kind, name string) (net.Conn, string, error) {
		if kind != trust.KindHost {
			return nil, "", fmt.Errorf("%w: only hosts are reached through the proxy", pod.ErrInvalid)
		}
		proxy, err := d.proxy(ctx)
		if err != nil {
			return nil, "", err
		}
		request := directory.Relay{ID: strings.ToLower(rand.Text()), From: d.Name, To: name, Proxy: proxy.Name, Move: move}
		if err := d.dir.AskRelay(ctx, request, relayTimeout); err != nil {
			return nil, "", err
		}
		conn, err := d.cluster.Peers.JoinRelay(ctx, proxy.Name, request.ID)
		if err := d.dir.EndRelay(context.WithoutCancel(ctx), request.ID); err != nil {
			d.log.Debug("a request for a relay was left to run out", "request", request.ID, "error", err)
		}
		if err != nil {
			return nil, "", fmt.Errorf("reaching host %s through proxy %s: %w", name, proxy.Name, err)
		}
		return conn, "proxy " + proxy.Name, nil
	}, relayTimeout)
}

// fetchRelayed goes to the proxy for every host that asks for a connection, and
// has the API served on it, until ctx ends.
func (d *Daemon) fetchRelayed(ctx context.Context, l *daemon.HandedListener) {
	var known map[string]bool
	slots := make(chan struct{}, maxRelayed)
	for requests := range d.dir.WatchRelays(ctx, d.Name) {
		now := make(map[string]bool, len(requests))
		for _, r := range requests {
			now[r.ID] = true
			if known[r.ID] {
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				d.log.Warn("too many hosts ask for a connection through the proxy", "from", r.From)
				delete(now, r.ID)
				continue
			}
			d.tasks.Go(func() {
				defer func() { <-slots }()
				d.fetch(ctx, l, r)
			})
		}
		known = now
	}
}

// fetch is this host's half of a relay.
func (d *Daemon) fetch(ctx context.Context, l *daemon.HandedListener, r directory.Relay) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	conn, err := d.cluster.Peers.JoinRelay(ctx, r.Proxy, r.ID)
	if err != nil {
		d.log.Warn("a host can't be reached through the proxy", "from", r.From, "proxy", r.Proxy, "move", r.Move, "error", err)
		return
	}
	l.Hand(conn)
}
