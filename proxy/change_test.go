package proxy

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"podd/directory"
	"podd/pod"
	"podd/proxy/datapath"
)

// way is a PodPath that can be compared.
type way struct {
	binding, next pod.Binding
	held          bool
}

// modelled is what a data path would be that is told of a state and changes.
type modelled map[netip.Addr]way

func (m modelled) put(paths []datapath.PodPath) {
	for _, p := range paths {
		w := way{binding: p.Binding, held: p.Held}
		if p.Next != nil {
			w.next = *p.Next
		}
		m[p.Binding.Virtual] = w
	}
}

func (m modelled) update(c datapath.Change) {
	for _, virtual := range c.Gone {
		delete(m, virtual)
	}
	m.put(c.Pods)
}

// TestChangesAreTheState makes random changes of the directory, and follows its
// views by changes and as a whole: both must come to the same.
func TestChangesAreTheState(t *testing.T) {
	const events = 150
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	m := newMeeting(t)
	m.register()
	views := m.dir.Watch(t.Context())
	byChange, asWhole := testReconciler(), testReconciler()
	model, now, changes := modelled{}, time.Now(), 0
	var view *directory.View
	for range events {
		m.disturb(random)
		if random.IntN(3) == 0 {
			continue // a reader may miss a view
		}
		read, err := m.dir.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for view == nil || view.Revision < read.Revision {
			select {
			case view = <-views:
			case <-time.After(10 * time.Second):
				t.Fatal("the watch shows nothing")
			}
			if view == nil {
				t.Fatal("the watch has ended")
			}
		}
		now = now.Add(rand.N(holdLimit / 3))
		whole, wantAgain := asWhole.state(view, now)
		change, again, ok := byChange.change(view, now)
		if ok {
			changes++
			model.update(change)
		} else {
			var s datapath.State
			s, again = byChange.state(view, now)
			model = modelled{}
			model.put(s.Pods)
		}
		byChange.followed = view
		want := modelled{}
		want.put(whole.Pods)
		if !maps.Equal(model, want) || again != wantAgain || !slices.Equal(slices.Sorted(maps.Keys(byChange.holds)), slices.Sorted(maps.Keys(asWhole.holds))) {
			t.Fatalf("by changes the data path is\n%v, again in %s,\nas a whole\n%v, again in %s", model, again, want, wantAgain)
		}
		if ok && len(change.Pods)+len(change.Gone) > 20 {
			t.Errorf("a change has %d paths", len(change.Pods)+len(change.Gone))
		}
		views = m.interrupt(random, views)
	}
	if changes < events/3 {
		t.Errorf("only %d changes were known as such", changes)
	}
}

// interrupt begins the watch anew, once in a while.
func (m *meeting) interrupt(random *rand.Rand, views <-chan *directory.View) <-chan *directory.View {
	if random.IntN(40) != 0 {
		return views
	}
	return m.dir.Watch(m.t.Context())
}

// disturb changes one pod or move of the directory.
func (m *meeting) disturb(random *rand.Rand) {
	m.t.Helper()
	ctx, name := m.t.Context(), fmt.Sprintf("pod-%d", random.IntN(8))
	p, err := m.dir.Pod(ctx, name)
	switch {
	case errors.Is(err, pod.ErrNotFound):
		_, err = m.dir.CreatePod(ctx, pod.Spec{Name: name, Command: []string{"sleep", "inf"}}, []string{"a", "b"}[random.IntN(2)])
	case err != nil:
	case p.Move != "":
		err = m.disturbMove(random, p.Move)
	case random.IntN(3) == 0:
		err = m.dir.DeletePod(ctx, name)
	case p.Phase != pod.PhaseRunning || random.IntN(4) == 0:
		phase := []pod.Phase{pod.PhaseRunning, pod.PhaseStopped}[random.IntN(2)]
		err = m.dir.UpdatePod(ctx, name, func(p *pod.Pod) error { p.Phase = phase; return nil })
	default:
		target := map[string]string{"a": "b", "b": "a"}[p.Binding.Host]
		var move *pod.Move
		move, err = m.dir.BeginMove(ctx, name, target, pod.StrategyAuto)
		if err == nil && move.State == pod.MoveQueued {
			err = m.dir.CancelMove(ctx, move.ID, "", errors.New("not now"))
		}
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// disturbMove takes a move a step further.
func (m *meeting) disturbMove(random *rand.Rand, id string) error {
	ctx := m.t.Context()
	move, err := m.dir.Move(ctx, id)
	switch {
	case err != nil:
		return err
	case move.State == pod.MoveAborted:
		return m.dir.AbortMove(ctx, id, pod.StageDump, errors.New("undone"))
	}
	switch random.IntN(4) {
	case 0:
		if err := m.dir.CommitMove(ctx, id); err != nil {
			return err
		}
		return m.dir.FinishMove(ctx, id, nil)
	case 1:
		return m.dir.CancelMove(ctx, id, pod.StageDump, errors.New("cancelled"))
	default:
		return m.dir.SetHeld(ctx, id, random.IntN(4) != 0)
	}
}
