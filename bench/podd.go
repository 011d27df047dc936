package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"podd/lab"
	"podd/pod"
)

// podView is what the benchmark needs of podctl inspect -o json.
type podView struct {
	Host          string     `json:"host"`
	PublicAddress netip.Addr `json:"publicAddress"`
}

// moveView is what it needs of podctl move -o json.
type moveView struct {
	State   pod.MoveState `json:"state"`
	Receipt *struct {
		FreezeMs    float64 `json:"freezeMs"`
		ExcisionMs  float64 `json:"excisionMs"`
		InsertionMs float64 `json:"insertionMs"`
		TotalMs     float64 `json:"totalMs"`
		MemoryBytes int64   `json:"memoryBytes"`
		Processes   int     `json:"processes"`
	} `json:"receipt"`
}

// podctl runs podctl against the podd of the lab's first host and returns
// standard output.
func (b *bench) podctl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "podctl"), args...)
	cmd.Env = append(os.Environ(), "PODCTL_HOST=unix://"+b.lab.Socket("a"))
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("podctl %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// podctlJSON is podctl with -o json, read into v.
func (b *bench) podctlJSON(ctx context.Context, v any, verb string, args ...string) error {
	out, err := b.podctl(ctx, append([]string{verb, "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("reading what podctl %s says: %w", verb, err)
	}
	return nil
}

// strategies reports whether podctl can be told how to move.
func (b *bench) strategies(ctx context.Context) (bool, error) {
	out, err := b.podctl(ctx, "move", "--help")
	return strings.Contains(string(out), "--strategy"), err
}

// awaitPort connects from the lab's client to a server that is starting.
func awaitPort(ctx context.Context, l *lab.Lab, address netip.Addr, port int) (net.Conn, error) {
	const limit, pause = time.Minute, 10 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := l.Dial(attempt, lab.Client, "tcp", net.JoinHostPort(address.String(), strconv.Itoa(port)))
		cancel()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a server: %w", err)
		case <-time.After(pause):
		}
	}
}
