package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"podd/pod"
)

// podView is what the demo needs of `podctl inspect -o json`.
type podView struct {
	Phase           pod.Phase  `json:"phase"`
	Host            string     `json:"host"`
	VirtualAddress  netip.Addr `json:"virtualAddress"`
	PublicAddress   netip.Addr `json:"publicAddress"`
	PhysicalAddress netip.Addr `json:"physicalAddress"`
}

// receipt is what the demo needs of `podctl move -o json`.
type receipt struct {
	Stages []struct {
		Stage    pod.Stage    `json:"stage"`
		Duration milliseconds `json:"durationMs"`
		Bytes    int64        `json:"bytes"`
	} `json:"stages"`
	Freeze           milliseconds `json:"freezeMs"`
	Total            milliseconds `json:"totalMs"`
	MemoryBytes      int64        `json:"memoryBytes"`
	PresyncFileBytes int64        `json:"presyncFileBytes"`
	FrozenFileBytes  int64        `json:"frozenFileBytes"`
	Processes        int          `json:"processes"`
	Connections      int          `json:"connections"`
}

type milliseconds float64

func (m milliseconds) duration() time.Duration {
	return time.Duration(float64(m) * float64(time.Millisecond))
}

// command is podctl, asking host a of the lab.
func (s *show) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.options.BinDir, "podctl"), args...)
	cmd.Env = append(os.Environ(), "PODCTL_HOST=unix://"+s.lab.Socket(hosts[0]))
	return cmd
}

// podctl runs podctl and returns its standard output.
func (s *show) podctl(ctx context.Context, args ...string) (string, error) {
	cmd := s.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout.String(), nil
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &exit) && stderr.Len() > 0:
		// Its hints are for people who have the lab before them.
		message, _, _ := strings.Cut(stderr.String(), "\nhint: ")
		err = errors.New(strings.TrimSpace(strings.TrimPrefix(message, "podctl: ")))
	}
	return "", fmt.Errorf("podctl %s: %w", args[0], err)
}

// epitaph says how the pod is and quotes the end of what its programs wrote.
func (s *show) epitaph() string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Whatever these have to say explains, be it an error.
	state, _ := s.command(ctx, "ps", "--all").CombinedOutput()
	logs, _ := s.command(ctx, "logs", "--tail", "10", podName).CombinedOutput()
	return string(state) + string(logs)
}

// inspect asks where the pod is.
func (s *show) inspect(ctx context.Context) (v podView, err error) {
	out, err := s.podctl(ctx, "inspect", "-o", "json", podName)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("reading what podctl inspect prints: %w", err)
	}
	return v, nil
}

// move moves the pod.
func (s *show) move(ctx context.Context, target string) (*receipt, error) {
	out, err := s.podctl(ctx, "move", "-o", "json", podName, target)
	if err != nil {
		return nil, err
	}
	var move struct {
		State   pod.MoveState `json:"state"`
		Receipt *receipt      `json:"receipt"`
	}
	if err := json.Unmarshal([]byte(out), &move); err != nil {
		return nil, fmt.Errorf("reading what podctl move prints: %w", err)
	}
	if move.State != pod.MoveDone || move.Receipt == nil {
		return nil, fmt.Errorf("the move to host %s ended as %q", target, move.State)
	}
	return move.Receipt, nil
}
