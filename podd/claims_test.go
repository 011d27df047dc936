package podd

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestClaims(t *testing.T) {
	var c claims
	release, ok := c.try("alice")
	if !ok {
		t.Fatal("a free name is refused")
	}
	if _, ok := c.try("alice"); ok {
		t.Error("two have the claim")
	}
	other, ok := c.try("bob")
	if !ok {
		t.Error("one claim keeps others from another name")
	}
	other()
	gone := errors.New("gone away")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := c.wait(ctx, "alice"); !errors.Is(err, gone) {
		t.Errorf("waiting in vain: %v", err)
	}
	var wait sync.WaitGroup
	count := 0
	for range 8 {
		wait.Go(func() {
			release, err := c.wait(t.Context(), "alice")
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			count++ // the race detector sees two
		})
	}
	release()
	wait.Wait()
	if count != 8 || len(c.held) != 0 {
		t.Errorf("%d had the claim, %d are left", count, len(c.held))
	}
}
