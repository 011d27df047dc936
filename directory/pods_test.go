package directory

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"podd/pod"
)

func TestCreatePod(t *testing.T) {
	d := newDirectory(t)
	p := create(t, d, "alice", "b")
	want := pod.Binding{
		Public: netip.MustParseAddr("198.18.0.2"), Virtual: netip.MustParseAddr("100.64.0.2"),
		Host: "b", Physical: netip.MustParseAddr("10.10.2.2"), Label: 1, Epoch: 1,
	}
	if p.Binding != want || p.Phase != pod.PhaseCreating || p.CreatedAt.IsZero() {
		t.Errorf("created %+v in phase %s at %s, want %+v", p.Binding, p.Phase, p.CreatedAt, want)
	}
	stored, err := d.Pod(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if string(encode(stored)) != string(encode(p)) {
		t.Errorf("stored %s, created %s", encode(stored), encode(p))
	}

	_, err = d.CreatePod(t.Context(), spec("alice"), "a")
	wantErr(t, err, pod.ErrExists, "alice")
	_, err = d.CreatePod(t.Context(), spec("Alice"), "a")
	wantErr(t, err, pod.ErrInvalid)
	_, err = d.CreatePod(t.Context(), spec("bob"), "nowhere")
	wantErr(t, err, pod.ErrNotFound, "nowhere")
	_, err = d.Pod(t.Context(), "bob")
	wantErr(t, err, pod.ErrNotFound, "bob")
}

func TestCreateSameNameAtOnce(t *testing.T) {
	e := start(t)
	d := open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	register(t, d, host("a", 1))
	const rivals, rounds = 4, 10
	for round := range rounds {
		var wait sync.WaitGroup
		errs := make([]error, rivals)
		for i := range rivals {
			rival := open(t, e) // each its own process, as it were
			wait.Go(func() { _, errs[i] = rival.CreatePod(t.Context(), spec(fmt.Sprintf("p%d", round)), "a") })
		}
		wait.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !errors.Is(err, pod.ErrExists) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("round %d: %d creators got the name", round, won)
		}
	}
}

func TestCreateInParallel(t *testing.T) {
	e := start(t)
	d := open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	register(t, d, host("a", 1))
	clients := []*Directory{d, open(t, e), open(t, e), open(t, e)}
	const pods = 100
	var wait sync.WaitGroup
	for i := range pods {
		wait.Go(func() {
			if _, err := clients[i%len(clients)].CreatePod(t.Context(), spec(fmt.Sprintf("p%d", i)), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	got, err := d.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[any]string{}
	for _, p := range got {
		for _, v := range []any{p.Binding.Public, p.Binding.Virtual, p.Binding.Label} {
			if other := seen[v]; other != "" {
				t.Errorf("pods %s and %s both have %v", p.Name(), other, v)
			}
			seen[v] = p.Name()
		}
		if offsetOf(cluster.Public, p.Binding.Public) != offsetOf(cluster.Virtual, p.Binding.Virtual) {
			t.Errorf("pod %s: %s and %s are not paired", p.Name(), p.Binding.Public, p.Binding.Virtual)
		}
	}
	if len(got) != pods {
		t.Errorf("%d pods, want %d", len(got), pods)
	}
}

func TestAddressesExhausted(t *testing.T) {
	d := open(t, start(t))
	small := Cluster{Public: netip.MustParsePrefix("198.18.0.248/29"), Virtual: netip.MustParsePrefix("100.64.0.248/29"), Zone: "z"}
	if err := d.InitCluster(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	register(t, d, host("a", 1))
	const room = 5 // 8 less network, router and broadcast
	for i := range room {
		p := create(t, d, fmt.Sprintf("p%d", i), "a")
		if last := p.Binding.Virtual.As4()[3]; last <= 249 || last == 255 {
			t.Errorf("address %s was given out", p.Binding.Virtual)
		}
	}
	_, err := d.CreatePod(t.Context(), spec("late"), "a")
	wantErr(t, err, pod.ErrExhausted, "100.64.0.248/29")
	freed, err := d.Pod(t.Context(), "p2")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.DeletePod(t.Context(), "p2"); err != nil {
		t.Fatal(err)
	}
	p := create(t, d, "late", "a")
	if p.Binding.Virtual != freed.Binding.Virtual || p.Binding.Public != freed.Binding.Public {
		t.Errorf("got %s, want the freed %s", p.Binding.Virtual, freed.Binding.Virtual)
	}
}

func TestUsableOffsets(t *testing.T) {
	for offset, want := range map[uint32]bool{0: false, 1: false, 2: true, 254: true, 255: false, 256: false, 257: true, 65535: false} {
		if got := cluster.usable(offset); got != want {
			t.Errorf("usable(%d) is %v", offset, got)
		}
	}
}

func TestFreedAddressRests(t *testing.T) {
	d := newDirectory(t)
	first := create(t, d, "first", "a")
	if err := d.DeletePod(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	again := create(t, d, "first", "a")
	if again.Binding.Virtual == first.Binding.Virtual {
		t.Errorf("address %s was given out again at once", first.Binding.Virtual)
	}
	if again.Binding.Label == first.Binding.Label {
		t.Errorf("label %s was used again", first.Binding.Label)
	}
	wantErr(t, d.DeletePod(t.Context(), "nobody"), pod.ErrNotFound)
}

func TestLabelsWrap(t *testing.T) {
	d := newDirectory(t)
	one := create(t, d, "one", "a") // label 1
	running(t, d, "two", "a")       // label 2
	m, err := d.BeginMove(t.Context(), "two", "b", pod.StrategyAuto)
	if err != nil {
		t.Fatal(err)
	}
	if one.Binding.Label != 1 || m.Next.Label != 3 {
		t.Fatalf("labels are %s and %s, want 1 and 3", one.Binding.Label, m.Next.Label)
	}
	// As after 16 million allocations: one label is left.
	if _, err := d.etcd.Put(t.Context(), allocatorKey, string(encode(allocator{Labels: labelCount - 1, Offset: 100}))); err != nil {
		t.Fatal(err)
	}
	for i, want := range []pod.Label{pod.MaxLabel, 4, 5} {
		if p := create(t, d, fmt.Sprintf("late%d", i), "a"); p.Binding.Label != want {
			t.Errorf("label is %s, want %s", p.Binding.Label, want)
		}
	}
}

func TestUpdatePod(t *testing.T) {
	d := newDirectory(t)
	create(t, d, "x", "a")
	const writers = 20
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			// One whose answer is late is made once more.
			if err := d.UpdatePod(t.Context(), "x", func(p *pod.Pod) error { p.ExitCode |= 1 << i; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	p, err := d.Pod(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.ExitCode != 1<<writers-1 {
		t.Errorf("of %d updates %b survived", writers, p.ExitCode)
	}
	mine := errors.New("no")
	wantErr(t, d.UpdatePod(t.Context(), "x", func(*pod.Pod) error { return mine }), mine)
	wantErr(t, d.UpdatePod(t.Context(), "x", func(p *pod.Pod) error { p.Binding.Epoch++; return nil }), pod.ErrInvalid)
	wantErr(t, d.UpdatePod(t.Context(), "nobody", func(*pod.Pod) error { return nil }), pod.ErrNotFound)
}
