//go:build e2e

package e2e

import (
	_ "embed"
	"testing"
)

//go:embed testdata/spawn.py
var spawnScript string

// A pod is moved while it is just starting programs: CRIU can't stop a process
// whose child has not executed its program yet.
func TestSpawning(t *testing.T) {
	p := newPod(t, "", "--", "/usr/bin/python3", "-c", spawnScript)
	count := follow(t, podctlCommand(bounded(t), "a", "logs", "-f", p.name))
	for range 2 {
		for _, host := range []string{"b", "c", "a"} {
			count.await("logs -f", 1)
			p.move(host)
			count.await("logs -f", 2)
		}
	}
}
