//go:build root

package pager

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// postCopy sends a part before the restore and the rest, in any order, when all is
// closed.
func postCopy(r *rand.Rand, all <-chan struct{}) func(c *sourceConn) {
	return func(c *sourceConn) {
		c.say(pagesync.Frame{Kind: pagesync.KindRegions, Regions: c.regions})
		c.say(pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: c.regions})
		all0 := pieces(r, c.regions, 32)
		for _, p := range all0[:len(all0)/4] {
			c.pages(p)
		}
		<-all
		for _, p := range all0 {
			c.pages(p)
		}
		c.say(pagesync.Frame{Kind: pagesync.KindDone})
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx := bounded(t, time.Minute)
	for tick := time.Tick(2 * time.Millisecond); !condition(); {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-tick:
		}
	}
}

func newSeed(t *testing.T) uint64 {
	seed := rand.Uint64() >> 1
	if s := os.Getenv("PAGER_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return seed
}

// freezerGroup makes a cgroup that can be frozen, for pods.
func freezerGroup(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("poddtest-pager-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	dir := filepath.Join("/sys/fs/cgroup", name)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		dir = filepath.Join("/sys/fs/cgroup/freezer", name)
	}
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		freezer(dir).thaw()
		for range 1000 {
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				return
			}
			<-time.After(5 * time.Millisecond)
		}
		t.Errorf("the cgroup %s stays", dir)
	})
	return dir
}

func (p *pod) enter(t *testing.T, group string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, p.cmd.Process.Pid), 0))
}

func frozen(t *testing.T, group string) bool {
	t.Helper()
	path, _, thaw, err := freezer(group).control()
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b)) != thaw
}

// world is pods whose memory is at a source, a pager, and what happens to them.
type world struct {
	source *testSource
	pods   []*pod
	group  string
	o      Options
	all    chan struct{} // closed when the source may send the rest
	once   sync.Once
}

func (w *world) release() { w.once.Do(func() { close(w.all) }) }

func newWorld(t *testing.T, seed uint64, pods int, o podOptions) *world {
	t.Helper()
	w := &world{source: newTestSource(t, seed), group: freezerGroup(t), all: make(chan struct{})}
	t.Cleanup(w.release)
	for i := range pods {
		o.seed, o.pid = seed, 5+i
		p := startPod(t, o)
		p.enter(t, w.group)
		w.pods = append(w.pods, p)
		w.source.regions = append(w.source.regions, p.regions...)
	}
	t.Cleanup(func() { freezer(w.group).thaw() }) // or they can't be ended
	w.source.serve = postCopy(rand.New(rand.NewPCG(seed, 1)), w.all)
	w.o = w.source.options(t, w.group)
	return w
}

func (w *world) attach(t *testing.T, p *Pager) {
	t.Helper()
	for _, pod := range w.pods {
		must(t, p.Attach(t.Context(), pod.pid, pod.uffd))
		pod.uffd.Close()
	}
	must(t, p.flush())
}

// killBoth kills the pager and the keeper of its descriptors.
func (w *world) killBoth(t *testing.T) {
	t.Helper()
	m, err := readMeta(w.o.Dir)
	must(t, err)
	must(t, m.Keeper.kill())
	must(t, m.Pager.kill())
}

// commit has the pods run, as after a restore.
func (w *world) commit(t *testing.T, p *Pager) {
	t.Helper()
	w.attach(t, p)
	must(t, p.Verify(bounded(t, time.Minute), false))
	must(t, p.Run())
	for _, pod := range w.pods {
		pod.start(t)
	}
}

func (w *world) finish(t *testing.T, p *Pager) {
	t.Helper()
	for _, pod := range w.pods {
		pod.finish(t, time.Minute)
	}
	if err := p.Wait(bounded(t, time.Minute)); err != nil {
		s, _ := p.Ask(t.Context())
		t.Fatalf("%v: %+v", err, s)
	}
	s := p.Status()
	t.Logf("%+v", s)
	if s.State != StateComplete {
		t.Errorf("state %s", s.State)
	}
	if frozen(t, w.group) {
		t.Error("the cgroup is left frozen")
	}
}

func (w *world) currentPager(t *testing.T) process {
	t.Helper()
	m, err := readMeta(w.o.Dir)
	must(t, err)
	return m.Pager
}

func TestPostCopy(t *testing.T) {
	seed := newSeed(t)
	w := newWorld(t, seed, 3, podOptions{regions: 3, pages: 500, ops: 1500, threads: 2, forks: 3})
	p := startPager(t, w.o)
	w.commit(t, p)
	eventually(t, "faults are asked for", func() bool {
		w.source.mu.Lock()
		defer w.source.mu.Unlock()
		return w.source.wants > 3
	})
	w.release()
	w.finish(t, p)
}

// TestKilled kills the pager again and again while the pods change their memory.
func TestKilled(t *testing.T) {
	seed := newSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, seed, 2, podOptions{regions: 3, pages: 2000, ops: 6000, threads: 2, forks: 6})
	p := startPager(t, w.o)
	w.commit(t, p)
	killed := 0
	last := process{}
	for range 6 {
		select {
		case <-p.Done():
		case <-time.After(time.Duration(r.IntN(120_000)) * time.Microsecond):
			eventually(t, "another pager", func() bool {
				select {
				case <-p.Done():
					return true
				default:
				}
				return w.currentPager(t) != last
			})
			last = w.currentPager(t)
			if unix.Kill(last.PID, unix.SIGKILL) == nil {
				killed++
			}
		}
		if killed == 3 {
			w.release()
		}
	}
	w.release()
	w.finish(t, p)
	t.Logf("%d killed", killed)
}

// TestPoddKilled has nobody look after the pager, kills it too, and then adopts it.
func TestPoddKilled(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("both %v", both), func(t *testing.T) {
			seed := newSeed(t)
			w := newWorld(t, seed, 2, podOptions{regions: 2, pages: 600, ops: 2000, threads: 1, forks: 3})
			p := startPager(t, w.o)
			w.commit(t, p)
			p.Close()
			if err := p.Wait(t.Context()); !errors.Is(err, ErrStopped) {
				t.Errorf("a closed handle: %v", err)
			}
			if both {
				last := w.currentPager(t)
				must(t, last.kill())
			}
			w.release()
			adopted, err := Adopt(t.Context(), w.o.Dir, w.o.Log)
			must(t, err)
			t.Cleanup(func() { adopted.Stop() })
			w.finish(t, adopted)
			again, err := Adopt(t.Context(), w.o.Dir, w.o.Log)
			must(t, err)
			must(t, again.Wait(t.Context()))
			again.Close()
		})
	}
}

// TestKeeperKilled loses the userfaultfds: the pod must not run on.
func TestKeeperKilled(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 1, pages: 500, ops: 1000})
	p := startPager(t, w.o)
	w.commit(t, p)
	w.killBoth(t)
	if err := p.Wait(bounded(t, time.Minute)); !errors.Is(err, ErrLost) {
		t.Errorf("the loss is reported as %v", err)
	}
	if s := p.Status(); s.State != StateLost || s.Cause == "" {
		t.Errorf("%+v", s)
	}
	if !frozen(t, w.group) {
		t.Error("the pod runs on")
	}
}

// TestBothKilledBeforeItRuns loses the pager and its keeper while nobody has let the
// pod run: podd has the userfaultfds, and nothing is lost.
func TestBothKilledBeforeItRuns(t *testing.T) {
	seed := newSeed(t)
	w := newWorld(t, seed, 2, podOptions{regions: 2, pages: 600, ops: 1500, threads: 2, forks: 2})
	p := startPager(t, w.o)
	w.attach(t, p)
	w.killBoth(t)
	must(t, p.Verify(bounded(t, time.Minute), false))
	w.killBoth(t)
	must(t, p.Run())
	for _, pod := range w.pods {
		pod.start(t)
	}
	w.release()
	w.finish(t, p)
}

// TestAllKilledBeforeItRuns loses podd, too: a restore is repeated with the next
// pager; a pod that is said to run without that is frozen.
func TestAllKilledBeforeItRuns(t *testing.T) {
	for _, repeated := range []bool{true, false} {
		t.Run(fmt.Sprintf("repeated %v", repeated), func(t *testing.T) {
			seed := newSeed(t)
			w := newWorld(t, seed, 1, podOptions{regions: 2, pages: 400, ops: 800})
			first := startPod(t, podOptions{seed: seed, pid: w.pods[0].pid, regions: 2, pages: 400, ops: 800})
			p := startPager(t, w.o)
			must(t, p.Attach(t.Context(), first.pid, first.uffd))
			first.uffd.Close()
			must(t, p.Verify(bounded(t, time.Minute), false))
			p.Close()
			w.killBoth(t)
			must(t, first.cmd.Process.Kill())
			p, err := Adopt(t.Context(), w.o.Dir, w.o.Log)
			must(t, err)
			t.Cleanup(func() { p.Stop() })
			if repeated {
				w.release()
				w.commit(t, p)
				w.finish(t, p)
				return
			}
			if err := p.Run(); err == nil {
				t.Error("the pod is to have its memory filled")
			}
			if err := p.Wait(bounded(t, time.Minute)); !errors.Is(err, ErrLost) {
				t.Errorf("the loss is reported as %v", err)
			}
			if !frozen(t, w.group) {
				t.Error("the pod runs on")
			}
		})
	}
}

// TestCut cuts the connection: the pod is frozen until there is another.
func TestCut(t *testing.T) {
	seed := newSeed(t)
	w := newWorld(t, seed, 2, podOptions{regions: 3, pages: 800, ops: 2000, threads: 1, forks: 3})
	p := startPager(t, w.o)
	w.commit(t, p)
	for range 3 {
		w.source.cut(false)
		eventually(t, "the pod is frozen", func() bool { return frozen(t, w.group) })
		eventually(t, "that is known", func() bool { s := p.Status(); return s.State == StateStalled && s.Cause != "" })
		w.source.accept()
		eventually(t, "the pod is thawed", func() bool { return !frozen(t, w.group) })
		eventually(t, "that is known", func() bool { return p.Status().State != StateStalled })
	}
	w.release()
	w.finish(t, p)
}

// TestSourceHangs: the source's kernel keeps the connection, and nobody answers.
func TestSourceHangs(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 2, pages: 300, ops: 500})
	w.source.deaf = w.all
	p := startPager(t, w.o)
	w.commit(t, p)
	eventually(t, "the pod is frozen", func() bool { return frozen(t, w.group) })
	eventually(t, "that is known", func() bool {
		s := p.Status()
		return s.State == StateStalled && strings.Contains(s.Cause, stalledCause)
	})
	w.release()
	eventually(t, "the pod is thawed", func() bool { return !frozen(t, w.group) })
	w.finish(t, p)
}

// TestCutWithoutFreezer: who needs what is missing waits all the same.
func TestCutWithoutFreezer(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 2, pages: 300, ops: 500})
	w.o.FreezerDir = "/nonexistent"
	p := startPager(t, w.o)
	w.commit(t, p)
	w.source.cut(false)
	eventually(t, "the stall is known", func() bool { s := p.Status(); return s.State == StateStalled })
	t.Log(p.Status().Cause)
	w.source.accept()
	w.release()
	w.finish(t, p)
}

// TestPaused: a pod that somebody else has frozen is left frozen.
func TestPaused(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 2, pages: 300, ops: 500})
	p := startPager(t, w.o)
	w.commit(t, p)
	froze, err := freezer(w.group).freeze()
	must(t, err)
	if !froze {
		t.Fatal("it was frozen")
	}
	w.source.cut(false)
	eventually(t, "the stall is known", func() bool { return p.Status().State == StateStalled })
	w.source.accept()
	w.release()
	must(t, p.Wait(bounded(t, time.Minute))) // a frozen pod's memory can be filled
	if !frozen(t, w.group) {
		t.Error("the pager has thawed what it had not frozen")
	}
	must(t, freezer(w.group).thaw())
	w.finish(t, p)
}

// TestPodEnds: nobody waits for the memory of a pod that is gone.
func TestPodEnds(t *testing.T) {
	w := newWorld(t, newSeed(t), 2, podOptions{regions: 2, pages: 300, ops: 500})
	p := startPager(t, w.o)
	w.commit(t, p)
	for _, pod := range w.pods {
		must(t, pod.cmd.Process.Kill())
		pod.cmd.Wait()
	}
	must(t, p.Wait(bounded(t, time.Minute)))
	eventually(t, "the source is told", func() bool {
		select {
		case number := <-w.source.acks:
			return number == pagesync.Done
		default:
			return false
		}
	})
}

// TestForkStorm: a pod that forks faster than children can be filled is frozen
// until they are.
func TestForkStorm(t *testing.T) {
	seed := newSeed(t)
	w := newWorld(t, seed, 1, podOptions{regions: 2, pages: 100, ops: 100, env: []string{fmt.Sprintf("POD_STORM=%d", 2*maxChildren)}})
	w.source.deaf = w.all
	p := startPager(t, w.o)
	w.commit(t, p)
	eventually(t, "the pod is frozen", func() bool {
		s := p.Status()
		return s.State == StateStalled && strings.Contains(s.Cause, crowdedCause)
	})
	if s, err := p.Ask(t.Context()); err != nil || s.Children > maxChildren+8 {
		t.Errorf("%+v, %v", s, err)
	}
	w.release()
	w.finish(t, p)
}

// TestRestoredTwice: a restore that is given up before the pod runs is repeated from
// the same store.
func TestRestoredTwice(t *testing.T) {
	seed := newSeed(t)
	s := newTestSource(t, seed)
	o := podOptions{seed: seed, pid: 5, regions: 2, pages: 400, ops: 800}
	first := startPod(t, o)
	s.regions, s.serve = first.regions, preCopy(rand.New(rand.NewPCG(seed, 1)))
	p := startPager(t, s.options(t, ""))
	must(t, p.Attach(t.Context(), 5, first.uffd))
	must(t, p.Verify(bounded(t, time.Minute), true))
	must(t, first.cmd.Process.Kill())
	// The second has its memory at the same addresses: without randomization of
	// addresses every process of a program does.
	second := startPod(t, o)
	if fmt.Sprint(second.regions) != fmt.Sprint(first.regions) {
		t.Fatalf("%v is not at %v", second.regions, first.regions)
	}
	must(t, p.Attach(t.Context(), 5, second.uffd))
	second.uffd.Close()
	must(t, p.Verify(bounded(t, time.Minute), true))
	must(t, p.Run())
	second.start(t)
	second.finish(t, time.Minute)
	must(t, p.Wait(bounded(t, time.Minute)))
}

func TestVerifyRefuses(t *testing.T) {
	seed := newSeed(t)
	s := newTestSource(t, seed)
	pod := startPod(t, podOptions{seed: seed, pid: 5, regions: 2, pages: 400})
	last := pod.regions[len(pod.regions)-1]
	// Beyond each region is a page that is not registered.
	s.regions = append([]pagesync.Region{}, pod.regions...)
	s.regions[len(s.regions)-1].End = last.End + pageSize
	s.serve = everything
	p := startPager(t, s.options(t, ""))
	if err := p.Verify(bounded(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "not restored") {
		t.Errorf("with no process: %v", err)
	}
	must(t, p.Attach(t.Context(), 5, pod.uffd))
	if err := p.Verify(bounded(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "can't be filled") {
		t.Errorf("with a page too many: %v", err)
	}
}

func TestLostBeforeTheFreeze(t *testing.T) {
	s := newTestSource(t, 1)
	s.serve = func(c *sourceConn) { c.testSource.cut(true) }
	p := startPager(t, s.options(t, ""))
	if err := p.Verify(bounded(t, time.Minute), false); err == nil || !strings.Contains(err.Error(), "lost before the pod was frozen") {
		t.Errorf("%v", err)
	}
}
