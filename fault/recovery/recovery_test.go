package recovery

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"podd/pod"
)

var update = flag.Bool("update", false, "write the table into ARCHITECTURE.md")

// The document and the tests say the same.
func TestDocument(t *testing.T) {
	const path = "../../ARCHITECTURE.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Replace(string(data))
	if err != nil {
		t.Fatal(err)
	}
	if want == string(data) {
		return
	}
	if !*update {
		t.Fatal("the table of recovery in ARCHITECTURE.md is not that of fault/recovery: change the data and run this test with -update")
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every fault of every victim at every stage of a move has one outcome.
func TestComplete(t *testing.T) {
	var stages []pod.Stage
	known := map[string]bool{}
	for _, m := range Moments {
		stages = append(stages, m.Stage)
		if known[m.Name] {
			t.Errorf("moment %q is there twice", m.Name)
		}
		known[m.Name] = true
	}
	if got := slices.Compact(stages); !slices.Equal(got, append(slices.Clone(pod.Stages), pod.StageMemory)) {
		t.Errorf("the moments are of the stages %v; those of a move are %v, and %s", got, pod.Stages, pod.StageMemory)
	}
	seen := map[string]bool{}
	for _, c := range Cells() {
		if seen[c.String()] {
			t.Errorf("%s is there twice", c)
		}
		seen[c.String()] = true
		if !slices.Contains([]Outcome{Stays, Goes, Either}, c.Outcome) {
			t.Errorf("%s: the outcome is %q", c, c.Outcome)
		}
		side, _, _ := strings.Cut(c.Moment.Point(c.Victim), ":")
		if side != "source" && side != "target" {
			t.Errorf("%s: the point is %q", c, c.Moment.Point(c.Victim))
		}
	}
	if want := len(Moments) * len(Victims) * len(Faults); len(seen) != want {
		t.Errorf("%d cells, want %d", len(seen), want)
	}
	for _, r := range table {
		for _, name := range r.moments {
			if !known[name] {
				t.Errorf("the table has a row for %q, which is no moment", name)
			}
			delete(known, name)
		}
		for _, v := range Victims {
			if c := r.cells[v]; c.does == "" || strings.ContainsAny(c.does, "|\n") {
				t.Errorf("%v, %s: what each does is %q", r.moments, v, c.does)
			}
		}
	}
	if len(known) > 0 {
		t.Errorf("the table has two rows, or none, for some moment: %v", known)
	}
}

// Whatever fails before the commit can end with the pod on the source, and
// after it with the pod on the target only.
func TestCommitDecides(t *testing.T) {
	committed := false
	for _, m := range Moments {
		committed = committed || m.Name == "committed"
		for _, v := range Victims {
			for _, f := range Faults {
				if o := Expected(m.Name, v, f); committed && o != Goes {
					t.Errorf("%s: %s %s: the pod %s, but the move is committed", m.Name, v, f, o)
				}
			}
		}
	}
}

// Every two of those who take part lose each other at every moment, for a short
// and for a long time.
func TestPartitionsComplete(t *testing.T) {
	pairs := map[Pair]bool{}
	for i, a := range Victims {
		for _, b := range Victims[i+1:] {
			pairs[Pair{a, b}] = true
		}
	}
	seen := map[string]bool{}
	for _, p := range Partitions() {
		if !pairs[p.Pair] || seen[p.String()] || p.Point() == "" {
			t.Errorf("%s is there twice, or no partition", p)
		}
		seen[p.String()] = true
		if committed := p.Moment.Name == "committed"; committed && p.Outcome != Goes || p.Outcome == "" {
			t.Errorf("%s: the outcome is %q", p, p.Outcome)
		}
		if longPartitions[p.Pair].why == "" {
			t.Errorf("%s: it is not said why", p)
		}
	}
	if want := len(pairs) * len(PartitionMoments) * 2; len(seen) != want || len(Pairs) != len(pairs) {
		t.Errorf("%d partitions of %d pairs, want %d of %d", len(seen), len(Pairs), want, len(pairs))
	}
}

func TestReplace(t *testing.T) {
	text := "before\n" + beginMark + "\nstale\n" + endMark + "\nafter\n"
	once, err := Replace(text)
	if err != nil || !strings.Contains(once, "| commit |") || strings.Contains(once, "stale") {
		t.Errorf("%q, %v", once, err)
	}
	if twice, err := Replace(once); err != nil || twice != once {
		t.Errorf("the second time it is different: %v", err)
	}
	if _, err := Replace("before\nafter\n"); err == nil {
		t.Error("a document without marks is taken")
	}
}
