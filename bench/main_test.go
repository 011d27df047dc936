package main

import (
	"errors"
	"flag"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	names := func(chosen []part) []string {
		var all []string
		for _, p := range chosen {
			all = append(all, p.name)
		}
		return all
	}
	for _, test := range []struct {
		args        []string
		parts       []string
		repetitions int
	}{
		{nil, names(parts), 15},
		{[]string{"move"}, []string{"move"}, 15},
		{[]string{"move", "-repetitions", "3"}, []string{"move"}, 3},
		{[]string{"-repetitions", "3", "move"}, []string{"move"}, 3},
	} {
		chosen, o, err := parse(test.args)
		if err != nil {
			t.Errorf("%q: %v", test.args, err)
			continue
		}
		if got := names(chosen); !slices.Equal(got, test.parts) || o.repetitions != test.repetitions {
			t.Errorf("%q: parts %v, %d repetitions", test.args, got, o.repetitions)
		}
	}
	for _, args := range [][]string{{"nothing"}, {"-repetitions", "0"}, {"-work", "("}, {"-flag"}} {
		if _, _, err := parse(args); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, _, err := parse([]string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}
