package directory

import (
	"slices"
	"strconv"
	"testing"
)

func TestHistory(t *testing.T) {
	h := newHistory()
	var copies []history
	const events = 5 * historyLength
	for i := range events {
		copies = append(copies, h)
		h.add(strconv.Itoa(i))
	}
	for i, earlier := range copies {
		names, ok := h.since(&earlier)
		if behind := events - i; !ok && behind <= historyLength {
			t.Fatalf("%d events are forgotten", behind)
		} else if ok && (len(names) != behind || names[0] != strconv.Itoa(i) || names[behind-1] != strconv.Itoa(events-1)) {
			t.Fatalf("%d events behind: %d names from %s on", behind, len(names), names[0])
		}
	}
	if _, ok := h.since(&copies[0]); ok || len(h.names) > 2*historyLength {
		t.Errorf("the history of %d events has %d and knows all", events, len(h.names))
	}
	if names, ok := h.since(&h); !ok || len(names) != 0 {
		t.Errorf("since now there were %v, %t", names, ok)
	}
	if _, ok := copies[10].since(&h); ok {
		t.Error("a history knows what is after it")
	}
	other, never := newHistory(), history{}
	if _, ok := h.since(&other); ok {
		t.Error("a history knows another watch")
	}
	if _, ok := never.since(&never); ok {
		t.Error("a view that no watch has made knows changes")
	}
}

func TestPodsChangedSince(t *testing.T) {
	d := newDirectory(t)
	views := d.Watch(t.Context())
	before := next(t, views, "hosts", func(v *View) bool { return len(v.Hosts) == 3 })
	changed := func(what string, want []string, ok func(*View) bool) {
		t.Helper()
		v := next(t, views, what, ok)
		names, known := v.PodsChangedSince(before)
		names = slices.Compact(slices.Sorted(slices.Values(names)))
		if !known || !slices.Equal(names, want) {
			t.Errorf("%s: changed are %v (%t), want %v", what, names, known, want)
		}
		before = v
	}
	create(t, d, "x", "a")
	create(t, d, "y", "a")
	changed("two new pods", []string{"x", "y"}, func(v *View) bool { return len(v.Pods) == 2 })
	if err := d.DeletePod(t.Context(), "y"); err != nil {
		t.Fatal(err)
	}
	changed("a pod removed", []string{"y"}, func(v *View) bool { return len(v.Pods) == 1 })
	if again, err := d.View(t.Context()); err != nil {
		t.Fatal(err)
	} else if _, known := again.PodsChangedSince(before); known {
		t.Error("a view that was read knows what a watch has seen")
	}
}
