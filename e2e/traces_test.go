//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/pod"
)

// traces are what one incarnation of a pod has on its host.
type traces struct {
	host string
	// id is what files and cgroups of the incarnation are named after.
	id string
	// paths are its directories and files; what is mounted at or below one
	// is the incarnation's, too.
	paths []string
	// netns is the inode of its network namespace.
	netns uint64
	// images is where moves keep what CRIU writes.
	images string
}

// findTraces describes what the incarnation has now, while it runs.
func findTraces(t *testing.T, host, name string, epoch pod.Epoch) *traces {
	t.Helper()
	id := fmt.Sprintf("%s.%d", name, epoch)
	run, state := theLab.RunDir(host), theLab.StateDir(host)
	netns := filepath.Join(run, "netns", fmt.Sprintf("%s-%d", name, epoch))
	tr := &traces{host: host, id: id, images: filepath.Join(run, "checkpoint"), paths: []string{
		filepath.Join(state, "pods", id),
		filepath.Join(run, "containers", id),
		netns,
	}}
	for _, pattern := range []string{"/sys/fs/cgroup/%s/%s", "/sys/fs/cgroup/*/%s/%s"} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, theLab.CgroupParent(host), id))
		if err != nil {
			t.Fatal(err)
		}
		tr.paths = append(tr.paths, found...)
	}
	var st unix.Stat_t
	if err := unix.Stat(netns, &st); err != nil {
		t.Fatalf("the network namespace of %s: %v", id, err)
	}
	tr.netns = st.Ino
	for _, path := range tr.paths {
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("the running pod %s on host %s lacks what the test wants to see go: %v", id, host, err)
		}
	}
	return tr
}

// requireGone fails the test if anything is left on the host.
func (tr *traces) requireGone(t *testing.T) {
	t.Helper()
	for _, path := range tr.paths {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("host %s still has %s", tr.host, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		for _, path := range tr.paths {
			if m.Mountpoint == path || strings.HasPrefix(m.Mountpoint, path+"/") {
				t.Errorf("host %s still has %s mounted", tr.host, m.Mountpoint)
			}
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		// A process that has ended meanwhile has no link.
		if target, err := os.Readlink(link); err == nil && target == fmt.Sprintf("net:[%d]", tr.netns) {
			t.Errorf("a process is still in the network namespace of %s on host %s: %s", tr.id, tr.host, filepath.Dir(filepath.Dir(link)))
		}
	}
	images, err := filepath.Glob(filepath.Join(tr.images, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(images) > 0 {
		t.Errorf("host %s still has images of a move: %v", tr.host, images)
	}
}
