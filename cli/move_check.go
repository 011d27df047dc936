package cli

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// checkView is preflight's verdict.
type checkView struct {
	Pod      string        `json:"pod"`
	Target   string        `json:"target"`
	Movable  bool          `json:"movable"`
	Blockers []pod.Blocker `json:"blockers"`
	// What would have to cross, as far as it is known beforehand.
	MemoryBytes int64 `json:"memoryBytes"`
	FileBytes   int64 `json:"fileBytes"`
	Processes   int   `json:"processes"`
	Connections int   `json:"connections"`
}

func (c *client) checkMove(ctx context.Context, name, target string) (checkView, error) {
	response, err := c.moves.CheckMove(ctx, connect.NewRequest(&poddv1.CheckMoveRequest{Pod: name, Target: target}))
	if err != nil {
		return checkView{}, err
	}
	m := response.Msg
	v := checkView{
		Pod: name, Target: target, Movable: len(m.GetBlockers()) == 0, Blockers: api.BlockersFromProto(m.GetBlockers()),
		MemoryBytes: m.GetMemoryBytes(), FileBytes: m.GetFileBytes(), Processes: int(m.GetProcesses()), Connections: int(m.GetConnections()),
	}
	if v.Blockers == nil {
		v.Blockers = []pod.Blocker{}
	}
	return v, nil
}

// checkMove prints preflight's verdict; the exit code says it too.
func (p *podctl) checkMove(ctx context.Context, client *client, f format, name, target string) error {
	v, err := client.checkMove(ctx, name, target)
	if err != nil {
		return fmt.Errorf("checking whether %s can move to %s: %w", name, target, err)
	}
	switch {
	case f == formatJSON || f == formatYAML:
		err = printDocument(p.stdout, f, v)
	case f == formatName:
		_, err = fmt.Fprintln(p.stdout, name)
	case v.Movable:
		_, err = fmt.Fprintf(p.stdout, "%s can be moved to %s: %s, %s, %s of memory, %s of files\n", name, target,
			count(v.Processes, "process", "processes"), count(v.Connections, "connection", "connections"),
			formatBytes(v.MemoryBytes), formatBytes(v.FileBytes))
	default:
		fmt.Fprintf(p.stdout, "%s can't be moved to %s:\n", name, target)
		err = printBlockers(p.stdout, v.Blockers)
	}
	if err == nil && !v.Movable {
		return exitStatus(exitNotMovable)
	}
	return err
}

// printBlockers prints what is in the way of a move, and what to do about it.
func printBlockers(w io.Writer, blockers []pod.Blocker) error {
	t := newTable(w)
	t.row("PID", "PROGRAM", "FD", "PROBLEM", "REMEDY")
	for _, b := range blockers {
		pid, descriptor := "", ""
		if b.PID > 0 {
			pid = fmt.Sprint(b.PID)
		}
		if b.Descriptor >= 0 {
			descriptor = fmt.Sprint(b.Descriptor)
		}
		t.row(pid, b.Program, descriptor, b.Problem, b.Remedy)
	}
	return t.flush()
}

// count writes a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
