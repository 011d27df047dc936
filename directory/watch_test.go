package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"podd/pod"
)

func TestRegistration(t *testing.T) {
	d := open(t, start(t))
	r := register(t, d, host("a", 1))
	h, err := d.Host(t.Context(), "a")
	if err != nil || !h.Alive || h.Physical != host("a", 1).Physical {
		t.Fatalf("host is %+v (%v), want it alive", h, err)
	}
	wantErr(t, d.RemoveHost(t.Context(), "a"), pod.ErrConflict, "alive")

	// Another machine of the same name is refused, the same one restarted is not.
	_, err = d.RegisterHost(t.Context(), host("a", 2))
	wantErr(t, err, pod.ErrExists, "10.10.1.2")
	restarted := register(t, d, host("a", 1))
	r.Abandon()
	if err := restarted.Close(); err != nil {
		t.Fatal(err)
	}
	hosts, err := d.Hosts(t.Context())
	if err != nil || len(hosts) != 1 || hosts[0].Alive {
		t.Fatalf("hosts are %+v (%v), want a, down", hosts, err)
	}
	if err := d.RemoveHost(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	_, err = d.Host(t.Context(), "a")
	wantErr(t, err, pod.ErrNotFound)
	wantErr(t, d.RemoveHost(t.Context(), "a"), pod.ErrNotFound)
	_, err = d.RegisterHost(t.Context(), host("Bad Name", 2))
	wantErr(t, err, pod.ErrInvalid)
}

func TestRemoveHostInUse(t *testing.T) {
	d := newDirectory(t)
	r := register(t, d, host("d", 4))
	create(t, d, "x", "d")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.RemoveHost(t.Context(), "d"), pod.ErrConflict, "pod x")
}

// TestLeaseRunsOut is a host that crashed; TestLeaseLost one whose lease the
// directory dropped while it lives.
func TestLeaseRunsOut(t *testing.T) {
	d := open(t, start(t))
	views := d.Watch(t.Context())
	r := register(t, d, host("a", 1))
	next(t, views, "the host alive", func(v *View) bool { return v.Hosts["a"].Alive })
	r.Abandon()
	v := next(t, views, "the host down", func(v *View) bool { return !v.Hosts["a"].Alive })
	if _, ok := v.Hosts["a"]; !ok {
		t.Error("the host's record went with its lease")
	}
}

func TestLeaseLost(t *testing.T) {
	d := open(t, start(t))
	views := d.Watch(t.Context())
	r := register(t, d, host("a", 1))
	next(t, views, "the host alive", func(v *View) bool { return v.Hosts["a"].Alive })
	if _, err := d.etcd.Revoke(t.Context(), r.lease); err != nil {
		t.Fatal(err)
	}
	next(t, views, "the host down", func(v *View) bool { return !v.Hosts["a"].Alive })
	next(t, views, "the host alive again", func(v *View) bool { return v.Hosts["a"].Alive })
}

func TestWatch(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "old", "a")
	views := d.Watch(t.Context())
	v := next(t, views, "what was there before", func(v *View) bool { return v.Pods["old"] != nil })
	if *v.Cluster != cluster || !v.Hosts["b"].Alive || len(v.Pods) != 1 {
		t.Errorf("the first view is %+v", v)
	}
	if p := v.PodAt(v.Pods["old"].Binding.Public); p == nil || p.Name() != "old" {
		t.Errorf("pod at the public address is %v", p)
	}
	m := begin(t, d, "old", "b")
	during := next(t, views, "the move", func(v *View) bool { return v.Moves[m.ID] != nil })
	if got := during.MoveOf(during.Pods["old"]); got == nil || got.ID != m.ID {
		t.Errorf("the view has the move without the pod's share of it: %v", got)
	}
	if err := d.CommitMove(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	after := next(t, views, "the commit", func(v *View) bool { return v.Moves[m.ID].State == pod.MoveCommitted })
	if after.Pods["old"].Binding != m.Next {
		t.Error("the view has the commit without the binding")
	}
	if during.Pods["old"].Binding.Host != "a" || during.Moves[m.ID].State != pod.MoveRunning {
		t.Error("an older view changed")
	}
	if err := d.DeletePod(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	gone := next(t, views, "the deletion", func(v *View) bool { return v.Pods["old"] == nil })
	if gone.Revision <= after.Revision || after.Revision <= during.Revision {
		t.Errorf("revisions %d, %d, %d do not grow", during.Revision, after.Revision, gone.Revision)
	}
}

func TestWatchEnds(t *testing.T) {
	d := newDirectory(t)
	ctx, cancel := context.WithCancel(t.Context())
	views := d.Watch(ctx)
	<-views
	cancel()
	for range views { // ends, or the test times out
	}
}

// TestMain also checks that nothing is left running by anything tested here.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWatchSkipsNothingLast reads nothing while much happens, then one view.
func TestWatchCoalesces(t *testing.T) {
	d := newDirectory(t)
	views := d.Watch(t.Context())
	for i := range 20 {
		create(t, d, fmt.Sprintf("p%d", i), "a")
	}
	seen := 0
	next(t, views, "all pods", func(v *View) bool { seen++; return len(v.Pods) == 20 })
	t.Logf("20 changes in %d views", seen)
}

func TestWatchIgnoresDamage(t *testing.T) {
	d := newDirectory(t)
	views := d.Watch(t.Context())
	if _, err := d.etcd.Put(t.Context(), podPrefix+"bad", "{"); err != nil {
		t.Fatal(err)
	}
	create(t, d, "good", "a")
	next(t, views, "the good pod", func(v *View) bool { return v.Pods["good"] != nil && v.Pods["bad"] == nil })
}

// TestRestart stops etcd and starts it again on the same data: watches resume,
// registrations live on and operations asked meanwhile wait for it.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	e := startIn(t, dir, "127.0.0.1:0")
	addr := strings.TrimPrefix(e.Endpoint(), "http://")
	d := open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	r := register(t, d, host("a", 1))
	views := d.Watch(t.Context())
	create(t, d, "before", "a")
	v := next(t, views, "the first pod", func(v *View) bool { return v.Pods["before"] != nil })

	began := time.Now()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	startIn(t, dir, addr)
	t.Logf("stopped in %s, started in %s", stopped.Sub(began), time.Since(stopped))

	p := create(t, d, "after", "a")
	t.Logf("created after %s", time.Since(stopped))
	if p.Binding.Label != 2 {
		t.Errorf("label is %s, want 2", p.Binding.Label)
	}
	after := next(t, views, "the second pod", func(v *View) bool { return v.Pods["after"] != nil })
	t.Logf("seen after %s", time.Since(stopped))
	if after.Pods["before"] == nil || !after.Hosts["a"].Alive || after.Revision <= v.Revision {
		t.Errorf("after the restart: %s", after)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestWatchSurvivesCompaction makes the events a watch has yet to see disappear.
func TestWatchSurvivesCompaction(t *testing.T) {
	dir := t.TempDir()
	e := startIn(t, dir, "127.0.0.1:0")
	addr := strings.TrimPrefix(e.Endpoint(), "http://")
	d := open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	views := d.Watch(t.Context())
	next(t, views, "the cluster", func(v *View) bool { return v.Cluster != nil })

	// The watcher is behind a relay that is cut while others write and compact.
	relayed := relay(t, addr)
	behind, err := Open(t.Context(), Options{Endpoints: []string{"http://" + relayed.addr}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = behind.Close() })
	late := behind.Watch(t.Context())
	next(t, late, "the cluster", func(v *View) bool { return v.Cluster != nil })
	relayed.cut()
	register(t, d, host("a", 1))
	create(t, d, "gone", "a")
	create(t, d, "kept", "a")
	if err := d.DeletePod(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	v := next(t, views, "the deletion", func(v *View) bool { return v.Pods["kept"] != nil && v.Pods["gone"] == nil })
	if _, err := d.etcd.Compact(t.Context(), v.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	relayed.mend()
	next(t, late, "the deletion", func(v *View) bool { return v.Pods["kept"] != nil && v.Pods["gone"] == nil })
}

// TestCommitReachesWatcher measures; it fails only if delivery is delayed by
// design (a poll, a debounce), not by a slow machine.
func TestCommitReachesWatcher(t *testing.T) {
	e := start(t)
	d, watcher := openLeasing(t, e, time.Minute), open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	register(t, d, host("a", 1))
	register(t, d, host("b", 2))
	running(t, d, "x", "a")
	views := watcher.Watch(t.Context())
	hosts := []string{"b", "a"}
	var asked, seen []time.Duration
	for i := range 30 {
		m := begin(t, d, "x", hosts[i%2])
		began := time.Now()
		if err := d.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, time.Since(began))
		next(t, views, "the commit", func(v *View) bool { return v.Moves[m.ID] != nil && v.Moves[m.ID].State == pod.MoveCommitted })
		seen = append(seen, time.Since(began))
		if err := d.FinishMove(t.Context(), m.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(asked)
	slices.Sort(seen)
	t.Logf("commit takes %s (median), seen by a watcher after %s, worst %s", asked[15], seen[15], seen[29])
}

func TestContextEnds(t *testing.T) {
	d := newDirectory(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Pod(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want %v", err, context.Canceled)
	}
}
