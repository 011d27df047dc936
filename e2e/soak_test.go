//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"podd/e2e/workload"
	"podd/lab"
	"podd/pod"
)

var (
	soakTime = flag.Duration("soak.time", 12*time.Second, "how long pods are moved and daemons made to fail")
	soakPods = flag.Int("soak.pods", 6, "how many pods are moved")
)

const (
	// soakRate is what goes each way between a pod and its client, in bytes a
	// second: enough to notice what is lost, little enough for twenty of them
	// on a small machine.
	soakRate = 8 << 10
	// soakMoves bounds how many moves are under way.
	soakMoves = 4
	// soakPatience bounds how long everything may take to come to rest.
	soakPatience = 2 * time.Minute
)

// soak is a run of random moves and faults.
type soak struct {
	t       *testing.T
	pods    []*soakPod
	moves   sync.WaitGroup
	mu      sync.Mutex
	moving  map[string]bool
	answers map[string]int // how commands ended
	faults  map[string]int // what was made to fail
}

type soakPod struct {
	*testPod
	client *workload.TCP
	load   *load
	since  pod.Epoch
}

// TestSoak moves pods at random between three hosts while daemons are killed,
// stopped and cut off at random. In the end no byte was wrong on any connection,
// no pod was lost or doubled, and nothing is left over.
func TestSoak(t *testing.T) {
	s := &soak{t: t, moving: map[string]bool{}, answers: map[string]int{}, faults: map[string]int{}}
	warmUp(t)
	before := lasting(t)
	for i := range *soakPods {
		s.pods = append(s.pods, s.newPod(i))
	}
	c := newChaos(s)
	began := time.Now()
	c.run(*soakTime)
	s.awaitMoves()
	c.rest()
	t.Logf("it took %v until everything was at rest", (time.Since(began) - *soakTime).Round(time.Second))
	s.requireWhole()
	s.report()
	for _, p := range s.pods {
		p.load.finish()
		p.remove()
		p.removed = true
	}
	until(t, "nothing is left over", func() error {
		if grown := lasting(t).beyond(before); len(grown) > 0 {
			return fmt.Errorf("left over:\n%s", strings.Join(grown, "\n"))
		}
		return nil
	})
}

func (s *soak) newPod(i int) *soakPod {
	s.t.Helper()
	dir, err := loadgenDir()
	if err != nil {
		s.t.Fatal(err)
	}
	host := theLab.HostNames()[i%len(theLab.HostNames())]
	p := &soakPod{testPod: newPodOn(s.t, host, fmt.Sprint(i), "--memory", "64m", "-v", dir+":/opt/loadgen:share,ro",
		"--", "/opt/loadgen/loadgen", "serve-tcp", "-listen", ":7000", "-rate", fmt.Sprint(soakRate))}
	p.client = workload.NewTCP(workload.TCPConfig{Address: p.awaitPort(7000), Dial: fromClient, Rate: soakRate, Seed: uint64(i)})
	p.load = startLoad(s.t, p.client)
	p.since = p.inspect().Epoch
	return p
}

// move moves a pod in the background, unless it or too many others are moving.
func (s *soak) move(p *soakPod, target, by string, flags ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moving[p.name] || len(s.moving) >= soakMoves {
		return
	}
	s.moving[p.name] = true
	s.moves.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soakPatience)
		defer cancel()
		out, err := podctlCommand(ctx, by, append([]string{"move", p.name, target}, flags...)...).CombinedOutput()
		if ctx.Err() != nil {
			s.t.Errorf("podctl move %s %s, asked of %s, does not end:\n%s", p.name, target, by, out)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.moving, p.name)
		kind := answer(out, err)
		if s.answers[kind]++; kind == "other" {
			s.t.Logf("podctl move %s %s, asked of %s: %v\n%s", p.name, target, by, err, out)
		}
	})
}

// answer sorts how a move's command ended.
func answer(out []byte, err error) string {
	var text string
	if i := strings.LastIndex(string(out), "podctl: "); i >= 0 {
		text = string(out[i:])
	}
	switch _, exited := err.(*exec.ExitError); {
	case err == nil:
		return "moved"
	case !exited:
		return err.Error()
	case strings.Contains(text, "goes on running"):
		return "undone"
	case strings.Contains(text, "already"), strings.Contains(text, "under way"), strings.Contains(text, "being moved"):
		return "refused"
	}
	if i := strings.Index(text, "unavailable"); i >= 0 {
		return "unavailable"
	}
	return "other"
}

func (s *soak) awaitMoves() {
	s.t.Helper()
	ended := make(chan struct{})
	go func() { s.moves.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(2 * soakPatience): // each has its own limit
		s.t.Fatal("the moves don't end")
	}
}

// requireWhole waits until every pod runs, on one host only, and checks that
// each one's connection goes on.
func (s *soak) requireWhole() {
	s.t.Helper()
	for _, p := range s.pods {
		now := awaitSettled(s.t, p.testPod)
		requireFlow(s.t, p.client, soakRate)
		requireClean(s.t, p.name, now)
		again := startLoad(s.t, workload.NewTCP(workload.TCPConfig{Address: p.public(7000), Dial: fromClient, Rate: soakRate, Seed: 1000}))
		again.finish()
	}
	var views []podView
	parseJSON(s.t, mustPodctl(s.t, "ps", "-a", "-o", "json"), &views)
	if len(views) != len(s.pods) {
		s.t.Errorf("there are %d pods, want %d: %+v", len(views), len(s.pods), views)
	}
	for _, c := range examine(s.t) {
		for _, f := range c.Findings {
			if f.Severity == "error" {
				s.t.Errorf("the doctor finds at %s: %s: %s", c.Name, f.Check, f.Detail)
			}
		}
	}
}

// report says what has happened.
func (s *soak) report() {
	s.t.Helper()
	var moves []moveView
	parseJSON(s.t, mustPodctl(s.t, "move", "ls", "-o", "json"), &moves)
	states := map[pod.MoveState]int{}
	ours := map[string]bool{}
	for _, p := range s.pods {
		ours[p.name] = true
	}
	var freeze []time.Duration
	others := 0
	for _, m := range moves {
		if !ours[m.Pod] {
			others++
			continue
		}
		states[m.State]++
		if m.Receipt != nil {
			freeze = append(freeze, m.Receipt.freeze())
		}
	}
	if n := len(moves) - states[pod.MoveDone] - states[pod.MoveAborted] - others; n > 0 {
		s.t.Errorf("%d moves are not finished", n)
	}
	var silence time.Duration
	var bytes int64
	var hops pod.Epoch
	for _, p := range s.pods {
		r := p.client.Result()
		silence = max(silence, r.LongestSilence)
		bytes += r.Received + r.Sent
		hops += p.inspect().Epoch - p.since
	}
	slices.Sort(freeze)
	var median time.Duration
	if len(freeze) > 0 {
		median = freeze[len(freeze)/2]
	}
	total := 0
	for _, n := range s.faults {
		total += n
	}
	s.t.Logf("seed %d, %v, %d pods: %d moves done, %d undone (commands: %s); %d faults (%s); longest silence %v, median freeze %v, %d bytes checked, %d epochs used",
		seed(), *soakTime, len(s.pods), states[pod.MoveDone], states[pod.MoveAborted], tally(s.answers), total, tally(s.faults),
		silence.Round(time.Millisecond), median.Round(time.Millisecond), bytes, hops)
	if states[pod.MoveDone] == 0 || total == 0 { // though chaos.run waited for both
		s.t.Error("nothing has moved, or nothing was made to fail, so the test proves nothing")
	}
}

func tally(counts map[string]int) string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", what, counts[what]))
	}
	return strings.Join(parts, ", ")
}

// warmUp makes what is made once, by a pod that goes round the hosts.
func warmUp(t *testing.T) {
	t.Helper()
	p := newShell(t, "first", counter)
	for _, host := range []string{"b", "c", "a"} {
		p.move(host)
	}
	p.remove()
	p.removed = true
}

// lasting is what there is on every node when no pod is left, apart from the
// daemons themselves, which are not the same ones afterwards, and their logs.
func lasting(t *testing.T) inventory {
	t.Helper()
	var all inventory
	// The kernel takes a moment to let namespaces go, the proxy devices.
	until(t, "the last pod is gone", func() error {
		all = takeInventory(t)
		for _, kind := range []string{"mnt", "pid", "ipc", "uts"} {
			if n := all[kind+" namespaces of pods"].value; n != 0 {
				return fmt.Errorf("%d %s namespaces", n, kind)
			}
		}
		if n := all["network namespaces of pods"]; n.value != int64(len(theLab.Daemons())) {
			return fmt.Errorf("network namespaces beside the daemons': %q", n.example)
		}
		for _, link := range all[lab.Proxy+": network devices"].example {
			if strings.Contains(link, ": label") {
				return fmt.Errorf("device %s", link)
			}
		}
		return nil
	})
	maps.DeleteFunc(all, func(what string, _ amount) bool {
		return strings.Contains(what, "daemon") || strings.Contains(what, "state directory")
	})
	return all
}
