package directory

import (
	"slices"
	"testing"
	"time"

	"podd/pod"
)

// TestRelays follows the requests for connections to one host.
func TestRelays(t *testing.T) {
	d := newDirectory(t)
	old := Relay{ID: "old", From: "a", To: "b"}
	if err := d.AskRelay(t.Context(), old, time.Minute); err != nil {
		t.Fatal(err)
	}
	watch := d.WatchRelays(t.Context(), "b")
	await := func(want ...Relay) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case got := <-watch:
				if slices.Equal(got, want) {
					return
				}
			case <-deadline:
				t.Fatalf("the requests %+v were not seen", want)
			}
		}
	}
	await(old)
	other, own := Relay{ID: "other", From: "a", To: "c"}, Relay{ID: "own", From: "c", To: "b", Move: "m"}
	for _, r := range []Relay{other, own} {
		if err := d.AskRelay(t.Context(), r, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	await(old, own)
	if got, err := d.Relay(t.Context(), "own"); err != nil || *got != own {
		t.Errorf("got %+v, %v", got, err)
	}
	for range 2 { // a second time does no harm
		if err := d.EndRelay(t.Context(), "old"); err != nil {
			t.Fatal(err)
		}
	}
	await(own)
	_, err := d.Relay(t.Context(), "old")
	wantErr(t, err, pod.ErrNotFound)
	// Nobody takes this one back.
	if err := d.AskRelay(t.Context(), Relay{ID: "short", From: "a", To: "b"}, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	await(own, Relay{ID: "short", From: "a", To: "b"})
	await(own)
}
