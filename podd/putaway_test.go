package podd

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

// What a move leaves is put away once the pod has caught up with what it missed, or at
// once if podd ends or there is nobody to wait for.
func TestPutAwayWaits(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	log := slog.New(slog.DiscardHandler)
	for name, test := range map[string]struct {
		ctx             context.Context
		committed, lost bool
		atLeast         time.Duration
	}{
		"runs":           {ctx: t.Context(), committed: true, atLeast: catchUp},
		"podd ends":      {ctx: ended, committed: true},
		"aborted":        {ctx: t.Context()},
		"does not run":   {ctx: t.Context(), committed: true, lost: true},
		"aborted at end": {ctx: ended},
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			var after time.Duration
			m := &targetMove{d: &Daemon{ctx: test.ctx}, log: log, committed: test.committed, lost: test.lost}
			m.later = append(m.later, func() { after = time.Since(begun) })
			m.putAway()
			if after == 0 || after < test.atLeast {
				t.Errorf("put away after %v, want %v", after, test.atLeast)
			}
		})
	}
}
