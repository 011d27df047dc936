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
	// Strategy is how the memory would be carried, and Reason why.
	Strategy pod.Strategy `json:"strategy"`
	Reason   string       `json:"reason"`
}

func (c *client) checkMove(ctx context.Context, order *poddv1.MovePodRequest) (checkView, error) {
	response, err := c.moves.CheckMove(ctx, connect.NewRequest(&poddv1.CheckMoveRequest{
		Pod: order.GetPod(), Target: order.GetTarget(), Strategy: order.GetStrategy(), MaxDowntime: order.GetMaxDowntime(),
	}))
	if err != nil {
		return checkView{}, err
	}
	m := response.Msg
	v := checkView{
		Pod: order.GetPod(), Target: order.GetTarget(), Movable: len(m.GetBlockers()) == 0, Blockers: api.BlockersFromProto(m.GetBlockers()),
		MemoryBytes: m.GetMemoryBytes(), FileBytes: m.GetFileBytes(), Processes: int(m.GetProcesses()), Connections: int(m.GetConnections()),
		Strategy: pod.Strategy(m.GetStrategy()), Reason: m.GetReason(),
	}
	if v.Blockers == nil {
		v.Blockers = []pod.Blocker{}
	}
	return v, nil
}

// checkMove prints preflight's verdict; the exit code says it too.
func (p *podctl) checkMove(ctx context.Context, client *client, f format, order *poddv1.MovePodRequest) error {
	name, target := order.GetPod(), order.GetTarget()
	v, err := client.checkMove(ctx, order)
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
		if err == nil && v.Strategy != "" {
			_, err = fmt.Fprintf(p.stdout, "strategy %s: %s\n", v.Strategy, v.Reason)
		}
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
