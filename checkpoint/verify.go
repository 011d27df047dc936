package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"

	"podd/sharedmem"
)

// ErrForbidden means that an image would give its processes more than a pod
// may have, or holds something that no pod of podd has.
var ErrForbidden = errors.New("image is not that of a confined pod")

// Policy is what a pod may be. CRIU restores whatever its images say, with all
// the rights of root: namespaces, privileges, mounts and the system call filter
// are in them, not in what the target asks for. Whoever could send images could
// so leave the pod. Verify compares them with the policy, which comes from this
// host and not from the images.
type Policy struct {
	// Capabilities are those that a process may have in any of its sets; bit n
	// is capability n.
	Capabilities uint64
	// NoNewPrivileges demands no_new_privs of every thread.
	NoNewPrivileges bool
	// SystemCallFilter is the seccomp program of every pod (an array of struct
	// sock_filter). A thread without a filter is refused. One whose filters
	// are others, as those of another version of podd, gets this one too:
	// the strictest of several decides.
	SystemCallFilter []byte
	// Mounts are the pod's mounts below its root.
	Mounts []PolicyMount
	// Threads is how many there may be, 0 means defaultThreads.
	Threads int64
}

// PolicyMount is a mount that a pod may have.
type PolicyMount struct {
	// Destination is where it is in the pod.
	Destination string
	// Type is the file system: proc, sysfs, devpts or mqueue. Empty means a
	// mount from outside, one of RestoreOptions.ExternalMounts.
	Type string
	// Root is what part of a file system of the pod is bound there; "/" is all.
	Root string
	// Flags are the MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC it must have.
	Flags uint32
	// Required says that without it the pod would see what it must not.
	Required bool
}

// defaultThreads bounds pods that have no limit of their own.
const defaultThreads = 1 << 16

// plainImages are the images whose contents need no look: they are about what is
// inside the pod, and can do no more than a process in it could. What matters is
// that no other is there, for CRIU opens each by its name: those that would load
// security profiles, network configuration, BPF maps, user namespaces or archives
// to be unpacked by root are not in the list, nor are those of old formats, which
// CRIU still prefers to what was verified.
var plainImages = regexp.MustCompile(`^(` + strings.Join([]string{
	`fs-\d+`, `pagemap-\d+`, `pagemap-shmem-\d+`, `shared-\d+`, `pages-\d+`, `pipes-data`, `fifo-data`, `sk-queues`,
	`utsns-\d+`, `timens-\d+`, `ipcns-(var|shm|msg|sem)-\d+`, `posix-timers-\d+`, `remap-fpath`, `filelocks`,
	`memfd`, `tty-data`, `tcp-stream-[0-9a-f]+`,
}, "|") + `)\.img$|^stats-(dump|restore)$`)

// verifier holds what the images of one pod say.
type verifier struct {
	root    *os.Root
	policy  Policy
	names   []string
	own     limits
	tree    []*pstree.PstreeEntry
	filters *seccomp.SeccompEntry
	// compared says of filters whether they do the same as the policy's.
	compared map[string]bool
	// chains are the threads' chains of filters, by the lowest, and whether
	// the policy's is missing there.
	chains map[uint32]bool
	// namespaces of the pod, by kind; zero where it has none of its own.
	namespaces kinds
	// cgroup is the one set of control groups that all threads are in.
	cgroup *uint32
	// decoded are images that were decoded as they came.
	decoded map[string]decodedImage
	// mem counts what image files amount to in memory.
	mem int64
}

// Verify refuses images that would make processes with more rights than the
// policy gives, with an error that wraps ErrForbidden, ErrCorrupt or ErrLimit. It
// imposes what it can: the policy's system call filter, and that images of
// control groups, which have no meaning here, are not read. dir must not change
// after that.
func (p Policy) Verify(dir string) error { return p.verify(dir, nil) }

// verify is Verify of images some of which were decoded as they were written to dir.
func (p Policy) verify(dir string, decoded map[string]decodedImage) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("verifying images: %w", err)
	}
	defer root.Close()
	v := &verifier{root: root, policy: p, decoded: decoded, chains: map[uint32]bool{}, compared: map[string]bool{}}
	if err := v.run(); err != nil {
		return fmt.Errorf("verifying images: %w", err)
	}
	return nil
}

func (v *verifier) run() error {
	var err error
	if v.own, err = ownLimits(); err != nil {
		return err
	}
	if err := v.list(); err != nil {
		return err
	}
	for _, step := range []func() error{v.readTree, v.readFilters, v.checkInventory, v.checkTasks, v.checkMounts, v.checkFiles, v.checkOthers, v.imposeFilter} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// list reads the directory. CRIU's own work directory may be there too, and the keeper of
// shared memory.
func (v *verifier) list() error {
	d, err := os.Open(v.root.Name()) // a file of an os.Root would look at each entry
	if err != nil {
		return err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() == workName {
			continue
		}
		if e.Name() == sharedmem.SocketName && e.Type() == fs.ModeSocket {
			continue
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%w: %q is not a file", ErrForbidden, e.Name())
		}
		v.names = append(v.names, e.Name())
	}
	return nil
}

// workName is the directory that podd keeps CRIU's log in.
const workName = "work"

// checkOthers looks at every file by its name: each is either plain or was
// looked at, or is looked at here.
func (v *verifier) checkOthers() error {
	for _, name := range v.names {
		kind, number, numbered := strings.Cut(strings.TrimSuffix(name, ".img"), "-")
		var err error
		switch {
		case name == "cgroup.img":
			// The pod is put into its cgroup by podd. CRIU takes no image for
			// no cgroups.
			err = v.root.Remove(name)
		case name == leftOutName: // podd's own
		case name == "inventory.img" || name == "pstree.img" || name == "files.img" || name == "seccomp.img":
		case name == "tty-info.img":
			err = v.checkTerminals(name)
		case kind == "ghost" && strings.HasPrefix(number, "file-"):
			err = v.checkGhost(name)
		case kind == "fdinfo" && numbered:
			err = v.checkDescriptors(name)
		case numbered && (kind == "core" || kind == "ids" || kind == "mm" || kind == "mountpoints"):
			err = v.checkNumber(kind, number)
		case !plainImages.MatchString(name):
			err = fmt.Errorf("%w: a pod has no image %s", ErrForbidden, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkNumber refuses images of processes or namespaces that were not looked
// at, because they are not in the tree.
func (v *verifier) checkNumber(kind, number string) error {
	n, err := strconv.ParseUint(number, 10, 32)
	if err == nil && strconv.FormatUint(n, 10) == number {
		if kind == "mountpoints" && uint32(n) == v.namespaces.mount {
			return nil
		}
		for _, p := range v.tree {
			if kind != "mountpoints" && p.GetPid() == uint32(n) || kind == "core" && slices.Contains(p.GetThreads(), uint32(n)) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: %s-%s.img is of nothing in the pod", ErrForbidden, kind, number)
}
