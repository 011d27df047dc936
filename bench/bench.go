package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"podd/bench/measure"
	"podd/bench/report"
	"podd/lab"
)

// bench is what a part is given: where to note what it measures, and a lab.
type bench struct {
	options
	// record takes samples; works do that for most.
	record measure.Record
	report report.Report
	bars   []report.Bar
	charts []report.Chart
	// dir is for files of the run; the guard removes it, after unmounting what
	// is mounted beneath.
	dir string
	log *slog.Logger

	lab        *lab.Lab
	labOptions lab.Options
}

// figure registers a figure that is measured; tables have them in this order.
func (b *bench) figure(name, unit, about string) {
	b.report.Figures = append(b.report.Figures, report.Figure{Name: name, Unit: unit, About: about})
}

// rank has the contenders compared by figures of which less, or more, is
// better: where podd is behind is said below the tables.
func (b *bench) rank(better string, figures ...string) {
	for i, f := range b.report.Figures {
		if slices.Contains(figures, f.Name) {
			b.report.Figures[i].Better = better
		}
	}
}

// bar registers a limit.
func (b *bench) bar(bar report.Bar) { b.bars = append(b.bars, bar) }

// chart registers a picture.
func (b *bench) chart(c report.Chart) { b.charts = append(b.charts, c) }

// note adds a remark to the report.
func (b *bench) note(format string, args ...any) {
	b.report.Notes = append(b.report.Notes, fmt.Sprintf(format, args...))
}

// wants reports whether the command line asks for a work.
func (b *bench) wants(work string) bool { return b.works.MatchString(work) }

// wanted returns those contenders that the command line asks for.
func (b *bench) wanted(contenders []measure.Contender) []measure.Contender {
	var chosen []measure.Contender
	for _, c := range contenders {
		if b.contenders.MatchString(c.Name) {
			chosen = append(chosen, c)
		}
	}
	return chosen
}

// work does a work by all contenders in turns, as often as the command line
// says, and notes the figures they return.
func (b *bench) work(ctx context.Context, name string, contenders ...measure.Contender) error {
	return b.workTimes(ctx, name, b.repetitions, contenders...)
}

// workTimes is work with another number of repetitions.
func (b *bench) workTimes(ctx context.Context, name string, repetitions int, contenders ...measure.Contender) error {
	contenders = b.wanted(contenders)
	if !b.wants(name) || len(contenders) == 0 {
		return nil
	}
	begin := time.Now()
	err := measure.Alternate(ctx, &b.record, name, repetitions, contenders, func(text string) { b.log.Warn(text) })
	b.log.Info("measured", "work", name, "repetitions", repetitions, "contenders", len(contenders), "took", time.Since(begin).Round(time.Second))
	return err
}

// labUp returns a lab with these options; one that is up already with the same
// ones is used again, another one taken down. Directories are set here.
func (b *bench) labUp(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	if b.lab != nil && b.labOptions == o {
		return b.lab, nil
	}
	if err := b.labDown(ctx); err != nil {
		return nil, err
	}
	b.labOptions = o
	o.Dir, o.BinDir = lab.DirIn(b.dir), b.bin
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	l, err := lab.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	b.lab = l
	return l, nil
}

// labDown takes down the lab, if one is up.
func (b *bench) labDown(ctx context.Context) error {
	if b.lab == nil {
		return nil
	}
	l := b.lab
	b.lab = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	return l.Down(ctx)
}

// runPart runs a part, writes its report, and returns how many bars were
// missed.
func runPart(ctx context.Context, p part, o options) (missed int, err error) {
	dir, err := os.MkdirTemp("/var/lib", "podd-bench-")
	if err != nil {
		return 0, fmt.Errorf("making a directory for the run: %w", err)
	}
	// Programs of pods, which run as any user, are beneath it.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, fmt.Errorf("making a directory for the run: %w", err)
	}
	dismiss, err := lab.StartGuard(dir)
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, dismiss()) }()

	b := &bench{options: o, dir: dir, log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("part", p.name)}
	b.report = report.Report{Part: p.name, About: p.about, Started: time.Now().Truncate(time.Second), Settings: o.settings()}
	if b.report.Machine, err = report.ThisMachine(b.versions()); err != nil {
		return 0, err
	}
	begin := time.Now()
	err = p.run(ctx, b)
	if downErr := b.labDown(ctx); downErr != nil {
		b.log.Warn("the lab could not be taken down; it is tried again in the end", "error", downErr)
	}
	if err != nil {
		// Nothing is written of half a run, but what there is can be looked at.
		b.report.Fill(&b.record, b.bars)
		return 0, errors.Join(err, b.report.WriteTable(os.Stdout))
	}
	b.report.Seconds = time.Since(begin).Round(time.Second).Seconds()
	return b.finish()
}

// finish judges and writes the report.
func (b *bench) finish() (missed int, err error) {
	b.report.Fill(&b.record, b.bars)
	if err := b.report.WriteTable(os.Stdout); err != nil {
		return 0, err
	}
	if err := b.report.WriteJSON(b.out); err != nil {
		return 0, err
	}
	for _, c := range b.charts {
		if err := b.report.Draw(b.out, c); err != nil {
			return 0, err
		}
	}
	if b.doc != "" {
		if err := b.report.Embed(b.doc); err != nil {
			return 0, err
		}
	}
	return b.report.Missed(), nil
}

// versions are the commands that tell programs' versions.
func (b *bench) versions() map[string][]string {
	return map[string][]string{
		"podd": {filepath.Join(b.bin, "podd"), "--version"}, "criu": {"criu", "--version"},
		"runc": {b.runc(), "--version"}, "podman": {"podman", "--version"}, "crun": {"crun", "--version"}, "haproxy": {"haproxy", "-v"},
	}
}

// runc is the path of the runc that takes part.
func (b *bench) runc() string { return filepath.Join(b.bin, "peers", "runc") }

func (o options) settings() map[string]string {
	return map[string]string{
		"repetitions": fmt.Sprint(o.repetitions), "full": fmt.Sprint(o.full), "work": o.works.String(), "by": o.contenders.String(),
	}
}
