//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"podd/pod"
)

// requireClean fails the test if a host keeps anything of the pod, except the
// incarnation that runs.
func requireClean(t *testing.T, name string, now podView) {
	t.Helper()
	for _, host := range theLab.HostNames() {
		var keep pod.Epoch
		if host == now.Host {
			keep = now.Epoch
		}
		until(t, "host "+host+" is clean", func() error { return remains(host, name, keep) })
	}
}

// remains is an error if a host has anything of a pod, except one incarnation,
// or any image of a move.
func remains(host, name string, keep pod.Epoch) error {
	run, state, parent := theLab.RunDir(host), theLab.StateDir(host), theLab.CgroupParent(host)
	var found []string
	for _, place := range []struct{ pattern, keep string }{
		{filepath.Join(state, "pods", name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join(run, "containers", name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join("/sys/fs/cgroup", parent, name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join("/sys/fs/cgroup/*", parent, name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join(run, "netns", name+"-*"), fmt.Sprintf("%s-%d", name, keep)},
		{filepath.Join(run, "checkpoint", "*"), ""},
	} {
		paths, err := filepath.Glob(place.pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if filepath.Base(path) != place.keep {
				found = append(found, path)
			}
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		own := strings.HasPrefix(m.Mountpoint, run+"/") || strings.HasPrefix(m.Mountpoint, state+"/")
		kept := strings.Contains(m.Mountpoint+"/", fmt.Sprintf("/%s.%d/", name, keep)) || strings.HasSuffix(m.Mountpoint, fmt.Sprintf("/%s-%d", name, keep))
		if own && !kept && (strings.Contains(m.Mountpoint, "/"+name+".") || strings.Contains(m.Mountpoint, "/"+name+"-")) {
			found = append(found, "mount "+m.Mountpoint)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("host %s still has %s", host, strings.Join(found, ", "))
	}
	return nil
}
