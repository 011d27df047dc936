package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"podd/pod"
)

var moveListing = listing[moveView]{
	name: func(v moveView) string { return v.ID },
	columns: []column[moveView]{
		{title: "ID", text: func(v moveView) string { return v.ID }},
		{title: "POD", text: func(v moveView) string { return v.Pod }},
		{title: "FROM", text: func(v moveView) string { return v.Source }},
		{title: "TO", text: func(v moveView) string { return v.Target }},
		{title: "STATE", text: moveView.state},
		{title: "STARTED", text: func(v moveView) string { return age(v.StartedAt) }},
		{title: "FREEZE", text: ofReceipt(func(r *receiptView) string { return r.Freeze.String() })},
		{title: "TOTAL", text: ofReceipt(func(r *receiptView) string { return r.Total.String() })},
		{title: "STRATEGY", text: moveView.strategy, wide: true},
		{title: "MEMORY", text: ofReceipt(func(r *receiptView) string { return formatBytes(r.MemoryBytes) }), wide: true},
		{title: "FILES", text: ofReceipt(func(r *receiptView) string { return formatBytes(r.PresyncFileBytes + r.FrozenFileBytes) }), wide: true},
		{title: "CONNECTIONS", text: ofReceipt(func(r *receiptView) string { return fmt.Sprint(r.Connections) }), wide: true},
		{title: "ERROR", text: func(v moveView) string { line, _, _ := strings.Cut(v.Error, "\n"); return line }, wide: true},
	},
}

// ofReceipt is a cell that is empty where there is no receipt.
func ofReceipt(text func(*receiptView) string) func(moveView) string {
	return func(v moveView) string {
		if v.Receipt == nil {
			return ""
		}
		return text(v.Receipt)
	}
}

// state is the state as tables show it, with the stage that explains it.
func (v moveView) state() string {
	switch v.State {
	case pod.MoveCommitted:
		if v.MemoryPending {
			return fmt.Sprintf("%s (%s)", v.State, pod.StageMemory)
		}
	case pod.MoveRunning:
		return fmt.Sprintf("%s (%s)", v.State, v.Stage)
	case pod.MoveAborted:
		if v.undoing() {
			return "undoing"
		}
		if v.FailedStage != "" {
			return fmt.Sprintf("%s (%s)", v.State, v.FailedStage)
		}
	}
	return string(v.State)
}

// strategy is how the memory is carried or, until that is known, what was asked for.
func (v moveView) strategy() string { return string(cmp.Or(v.Chosen, v.Strategy)) }

// printMove prints one move: its receipt, or how it stands.
func (p *podctl) printMove(f format, v moveView) error {
	switch f {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, f, v)
	case formatName:
		return moveListing.print(p.stdout, f, []moveView{v})
	}
	switch {
	case v.State == pod.MoveAborted:
		fmt.Fprintf(p.stdout, "%s was not moved from %s to %s (move %s): stage %s failed: %s\n", v.Pod, v.Source, v.Target, v.ID, v.FailedStage, v.Error)
	case v.State == pod.MoveQueued:
		fmt.Fprintf(p.stdout, "%s waits to move from %s to %s (move %s): one of them has as many moves as it may have, for %s\n",
			v.Pod, v.Source, v.Target, v.ID, formatDuration(time.Since(v.StartedAt)))
	case v.State == pod.MoveCommitted && v.MemoryPending:
		fmt.Fprintf(p.stdout, "%s moved from %s to %s (move %s), and its memory follows", v.Pod, v.Source, v.Target, v.ID)
		if v.Arrival != nil {
			fmt.Fprintf(p.stdout, ": %s", v.Arrival)
		}
		fmt.Fprintln(p.stdout)
	case v.State == pod.MoveCommitted:
		fmt.Fprintf(p.stdout, "%s moved from %s to %s (move %s); %s has yet to clean up\n", v.Pod, v.Source, v.Target, v.ID, v.Source)
	case v.State == pod.MoveDone && v.Receipt == nil:
		fmt.Fprintf(p.stdout, "%s moved from %s to %s (move %s); %s was restarted meanwhile, and what was measured is lost\n",
			v.Pod, v.Source, v.Target, v.ID, v.Source)
	case v.Receipt == nil:
		fmt.Fprintf(p.stdout, "%s moves from %s to %s (move %s): stage %s, for %s, strategy %s\n", v.Pod, v.Source, v.Target, v.ID, v.Stage,
			formatDuration(time.Since(v.StartedAt)), v.strategy())
	default:
		return p.printReceipt(v)
	}
	return nil
}

// printReceipt prints what a finished move measured.
func (p *podctl) printReceipt(v moveView) error {
	r := v.Receipt
	fmt.Fprintf(p.stdout, "%s moved from %s to %s: frozen for %s, %s carried (move %s)\n\n", v.Pod, v.Source, v.Target, r.Freeze,
		count(r.Connections, "connection", "connections"), v.ID)
	stages := newTable(p.stdout)
	stages.row("STAGE", "TIME", "BYTES", "RATE")
	for _, s := range r.Stages {
		size := ""
		if s.Bytes > 0 {
			size = formatBytes(s.Bytes)
		}
		stages.row(string(s.Stage), s.Duration.String(), size, formatRate(s.Bytes, time.Duration(s.Duration)))
	}
	if err := stages.flush(); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout)

	sums := newTable(p.stdout)
	sums.row("freeze", r.Freeze.String(), "no process of the pod ran")
	sums.row("excision", r.Excision.String(), "from the freeze until the image was complete on "+v.Target)
	sums.row("insertion", r.Insertion.String(), "from there until the pod ran")
	sums.row("total", r.Total.String(), "from the request until "+v.Source+" was clean")
	if v.Chosen != "" {
		sums.row("strategy", string(v.Chosen), v.Reason)
	}
	if r.Predicted > 0 {
		sums.row("predicted", r.Predicted.String(), "what the freeze was expected to be")
	}
	sums.row("memory", formatBytes(r.MemoryBytes), count(int(r.Pages), "page", "pages"))
	if r.CarriedBytes > 0 {
		sums.row("carried", formatBytes(r.CarriedBytes), "of memory without CRIU")
		sums.row("- before", formatBytes(r.PrecopyBytes), "sent while the pod ran, in "+count(r.Passes, "pass", "passes"))
		sums.row("- frozen", formatBytes(r.FrozenMemoryBytes), "sent while it was frozen")
		sums.row("- after", formatBytes(r.LateMemoryBytes), "sent when it ran on "+v.Target)
	}
	if a := v.Arrival; a != nil {
		sums.row("faults", fmt.Sprint(a.Faults), fmt.Sprintf("times a process waited for memory, %s at most; all was there after %s", a.WorstFault, a.Duration))
	}
	sums.row("files", formatBytes(r.PresyncFileBytes+r.FrozenFileBytes), formatBytes(r.FrozenFileBytes)+" of it while frozen")
	sums.row("images", formatBytes(r.ImageBytes), "everything else about the processes")
	sums.row("processes", fmt.Sprint(r.Processes), "in the pod")
	sums.row("connections", fmt.Sprint(r.Connections), "established TCP connections carried")
	return sums.flush()
}
