// Command bench measures podd side by side with other programs that do the
// same, on this machine and in the same run. `just bench` runs it;
// docs/benchmarks.md says what is measured, how, and what came out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"podd/lab"
)

// parts are the parts of the benchmark, in the order they run.
var parts = []part{movePart, createPart, pathPart, thesisPart}

// part is one part of the benchmark.
type part struct {
	name string
	// about says in a line what is measured.
	about string
	// run measures: it registers figures, bars and charts, and works.
	run func(context.Context, *bench) error
}

func main() {
	if guard, err := lab.RunGuard(cleanUp); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	} else if guard {
		return
	}
	if credentials := os.Getenv(fillerVariable); credentials != "" {
		if err := fill(credentials); err != nil {
			fmt.Fprintln(os.Stderr, "bench: filler:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong arguments; bench -h says what there is")

// options are the command line's.
type options struct {
	repetitions int
	full        bool
	works       *regexp.Regexp
	contenders  *regexp.Regexp
	out         string
	doc         string
	bin         string
	strict      bool
}

func run(ctx context.Context, args []string) error {
	chosen, o, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it makes network namespaces and containers; try sudo")
	}
	missed := 0
	for _, p := range chosen {
		n, err := runPart(ctx, p, o)
		if err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
		missed += n
	}
	if o.strict && missed > 0 {
		return fmt.Errorf("%d bars were missed", missed)
	}
	return nil
}

// parse reads parts and flags in any order.
func parse(args []string) ([]part, options, error) {
	var o options
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.repetitions, "repetitions", 15, "how often everything is measured")
	f.BoolVar(&o.full, "full", false, "measure also what takes long")
	f.StringVar(&o.out, "out", "docs/bench", "`directory` for JSON and pictures")
	f.StringVar(&o.doc, "doc", "", "write the tables also into this `file`, between its marks")
	f.StringVar(&o.bin, "bin", "bin", "`directory` of podd, podproxy, podctl, podinit and peers/runc")
	f.BoolVar(&o.strict, "strict", false, "fail when a bar is missed")
	works := f.String("work", "", "measure only works that match `regexp`")
	contenders := f.String("by", "", "measure only contenders that match `regexp`")
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: bench [%s]... [flags]\n", strings.Join(names, "|"))
		f.PrintDefaults()
	}
	var chosen []part
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, o, err
			}
			return nil, o, fmt.Errorf("%w: %w", errUsage, err)
		}
		if args = f.Args(); len(args) == 0 {
			break
		}
		i := slices.Index(names, args[0])
		if i < 0 {
			return nil, o, fmt.Errorf("%w: there is no part %q", errUsage, args[0])
		}
		chosen = append(chosen, parts[i])
		args = args[1:]
	}
	if o.repetitions < 1 {
		return nil, o, fmt.Errorf("%w: -repetitions %d: want 1 or more", errUsage, o.repetitions)
	}
	var err error
	if o.works, err = regexp.Compile(*works); err != nil {
		return nil, o, fmt.Errorf("%w: -work: %w", errUsage, err)
	}
	if o.contenders, err = regexp.Compile(*contenders); err != nil {
		return nil, o, fmt.Errorf("%w: -by: %w", errUsage, err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, o, fmt.Errorf("finding the programs: %w", err)
	}
	if len(chosen) == 0 {
		chosen = parts
	}
	return chosen, o, nil
}
