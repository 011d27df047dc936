//go:build root

package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A pod that was restored has the priority that it had, and not CRIU's, be it that of
// its processes or of their session.
func TestPriority(t *testing.T) {
	e := openEngine(t)
	w := newWorld(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	was := c.ask(t)
	m := begin(t, e, pod.pid, w.source, w.target)
	m.commit(t)
	if got, err := unix.Getpriority(unix.PRIO_PROCESS, m.init); err != nil || got != 20 { // less the nice value
		t.Errorf("the pod has a nice value of %d, %v", 20-got, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", m.init))
	if !errors.Is(err, fs.ErrNotExist) && (err != nil || !strings.HasSuffix(string(b), " nice 0\n")) {
		t.Errorf("the pod's session has %q, %v", b, err)
	}
	unharmed(t, c, was)
}
