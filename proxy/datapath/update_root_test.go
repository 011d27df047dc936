//go:build root

package datapath

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestUpdate makes random changes, and sees that the kernel is then as a Set of
// everything would have it.
func TestUpdate(t *testing.T) {
	const pods, rounds = 12, 60
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, 2)
	wanted := map[int]PodPath{} // by number
	l.set(l.state())
	for range rounds {
		change := Change{Hosts: l.state().Hosts}
		for range 1 + random.IntN(3) {
			number := 1 + random.IntN(pods)
			virtual := l.newBinding(number, 0).Virtual
			if slices.Contains(change.Gone, virtual) {
				continue
			}
			path, had := wanted[number]
			change.Gone = append(change.Gone, virtual) // unless it is among the pods, too
			switch step := random.IntN(5); {
			case !had || step == 0 && !path.Held:
				path = PodPath{Binding: l.newBinding(number, random.IntN(2))} // another incarnation at the address
			case step == 1:
				delete(wanted, number)
				continue
			case path.Next == nil:
				next := l.newBinding(number, random.IntN(2))
				path.Next = &next
			case !path.Held:
				path.Held = true
			case step == 2:
				path = PodPath{Binding: path.Binding} // aborted
			default:
				path = PodPath{Binding: *path.Next} // committed
			}
			wanted[number] = path
			change.Pods = append(change.Pods, path)
		}
		l.Proxy.Do(t, func() error { return l.datapath.Update(context.Background(), change) })
		var repairs []Repair
		l.Proxy.Do(t, func() (err error) {
			repairs, err = l.datapath.Repair(context.Background(), State{Hosts: change.Hosts, Pods: slices.Collect(maps.Values(wanted))})
			return err
		})
		if len(repairs) != 0 {
			t.Fatalf("after %+v, repaired was %v", change, repairs)
		}
		if stats := l.datapath.Stats(); stats.Pods != len(wanted) {
			t.Fatalf("%d pods have a path, want %d", stats.Pods, len(wanted))
		}
	}
}

// TestUpdateWhenStale: what may not be remembered rightly is not built on.
func TestUpdateWhenStale(t *testing.T) {
	l := newLab(t, 1)
	l.set(l.state())
	l.datapath.Resync()
	change := Change{Hosts: l.state().Hosts, Pods: []PodPath{{Binding: l.newBinding(1, 0)}}}
	l.Proxy.Do(t, func() error {
		if err := l.datapath.Update(context.Background(), change); !errors.Is(err, ErrStale) {
			t.Errorf("Update returned %v", err)
		}
		return l.datapath.Set(context.Background(), l.state())
	})
	if stats := l.datapath.Stats(); stats.Pods != 0 {
		t.Errorf("%d pods have a path", stats.Pods)
	}
	l.Proxy.Do(t, func() error { return l.datapath.Update(context.Background(), change) })
	if stats := l.datapath.Stats(); stats.Pods != 1 {
		t.Errorf("%d pods have a path, want 1", stats.Pods)
	}
}
