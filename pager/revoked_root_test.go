//go:build root

package pager

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestSourceRevoked turns the source out while it is sending: the pod stands still.
func TestSourceRevoked(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 2, pages: 300, ops: 500})
	w.source.deaf = w.all // or the pod might have asked for everything by then
	w.o.RevokedFile = filepath.Join(t.TempDir(), "revoked.json")
	p := startPager(t, w.o)
	w.commit(t, p)
	must(t, WriteRevoked(w.o.RevokedFile, map[string]bool{w.source.serial: true}))
	eventually(t, "the pod is frozen", func() bool { return frozen(t, w.group) })
	eventually(t, "the reason is known", func() bool {
		s, err := p.Ask(t.Context())
		return err == nil && s.State == StateStalled && strings.Contains(s.Disconnected, "revoked")
	})
	must(t, WriteRevoked(w.o.RevokedFile, nil))
	w.release()
	w.finish(t, p)
}
