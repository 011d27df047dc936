//go:build root

package checkpoint

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func oomScore(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	must(t, err)
	return strings.TrimSpace(string(b))
}

func setOOMScore(t *testing.T, pid int, score string) {
	t.Helper()
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(score), 0))
}

// TestOOMScore moves pods between hosts whose daemon has an OOM score of its
// own, as podd has from its systemd unit. The pods keep theirs.
func TestOOMScore(t *testing.T) {
	e := openEngine(t)
	own := oomScore(t, os.Getpid())
	for _, want := range []string{"0", "300"} {
		t.Run(want, func(t *testing.T) {
			w := newWorld(t)
			pod := w.source.start(t, 1)
			c := w.control(t)
			was := c.ask(t)
			setOOMScore(t, pod.pid, want)
			setOOMScore(t, os.Getpid(), "100")
			t.Cleanup(func() { setOOMScore(t, os.Getpid(), own) })
			m := begin(t, e, pod.pid, w.source, w.target)
			m.commit(t)
			if got := oomScore(t, m.init); got != want {
				t.Errorf("the pod has an OOM score of %s, want %s", got, want)
			}
			unharmed(t, c, was)
		})
	}
}
