package checkpoint

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
	"golang.org/x/sys/unix"
)

// checkMounts compares the mounts with the policy's. CRIU makes them in the
// order of the tree that their parents' IDs give, so each must be where its
// mount point says: else one that is to protect something could lie below what
// it protects.
func (v *verifier) checkMounts() error {
	name := fmt.Sprintf("mountpoints-%d.img", v.namespaces.mount)
	var list []*mnt.MntEntry
	byID, byPoint := map[uint32]*mnt.MntEntry{}, map[string]*mnt.MntEntry{}
	err := readAll(v, name, "MNTS", func(m *mnt.MntEntry) error {
		point := m.GetMountpoint()
		if point != path.Clean(point) || !path.IsAbs(point) {
			return fmt.Errorf("%w: a mount at %q", ErrCorrupt, point)
		}
		if byID[m.GetMntId()] != nil || byPoint[point] != nil {
			return fmt.Errorf("%w: two mounts at %s, or with one number", ErrForbidden, point)
		}
		byID[m.GetMntId()], byPoint[point] = m, m
		list = append(list, m)
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range list {
		if err := v.checkMount(m); err != nil {
			return fmt.Errorf("mount at %s: %w", m.GetMountpoint(), err)
		}
		parent := byID[m.GetParentMntId()]
		if (parent == nil) != (m.GetMountpoint() == "/") || parent != nil && parent != above(byPoint, m.GetMountpoint()) {
			return fmt.Errorf("%w: mount at %s: its parent is another than its place says", ErrForbidden, m.GetMountpoint())
		}
	}
	if byPoint["/"] == nil {
		return fmt.Errorf("%w: no root file system", ErrCorrupt)
	}
	for _, want := range v.policy.Mounts {
		if want.Required && byPoint[want.Destination] == nil {
			return fmt.Errorf("%w: on this host a pod must not see what is at %s, but nothing is mounted over it", ErrForbidden, want.Destination)
		}
	}
	return nil
}

// above finds the mount in which a mount point lies.
func above(byPoint map[string]*mnt.MntEntry, point string) *mnt.MntEntry {
	for point != "/" {
		point = path.Dir(point)
		if m := byPoint[point]; m != nil {
			return m
		}
	}
	return nil
}

const (
	// protections are the flags of a mount that take rights away.
	protections = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// harmlessFlags are about times of access.
	harmlessFlags = unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
	// superblockFlags are those that CRIU gives to a new file system; others
	// would make mount(2) do something else.
	superblockFlags = unix.MS_RDONLY | unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_MANDLOCK
)

// fileSystems are those that CRIU mounts itself, by what podd calls them, with the
// options they may have.
var fileSystems = map[mnt.Fstype]struct {
	name    string
	options []string
}{
	mnt.Fstype_PROC:   {"proc", nil},
	mnt.Fstype_SYSFS:  {"sysfs", nil},
	mnt.Fstype_MQUEUE: {"mqueue", nil},
	mnt.Fstype_DEVPTS: {"devpts", []string{"gid=5", "mode=620", "ptmxmode=666", "newinstance"}},
}

func (v *verifier) checkMount(m *mnt.MntEntry) error {
	if m.GetSharedId() != 0 || m.GetMasterId() != 0 || m.GetWithPlugin() || m.GetExtMount() || m.GetInternalSharing() || m.GetDeleted() || m.GetFsname() != "" {
		return fmt.Errorf("%w: it is of no kind that pods have", ErrForbidden)
	}
	if flags := m.GetFlags(); flags&^(protections|harmlessFlags) != 0 || m.GetSbFlags()&^superblockFlags != 0 {
		return fmt.Errorf("%w: flags %#x and %#x", ErrForbidden, flags, m.GetSbFlags())
	}
	if m.GetMountpoint() == "/" {
		// RestoreOptions.Root takes its place.
		if m.GetFlags()&unix.MS_NODEV == 0 || m.GetExtKey() != "" {
			return fmt.Errorf("%w: devices would work in it", ErrForbidden)
		}
		return nil
	}
	kind := ""
	if m.GetExtKey() == "" {
		known, ok := fileSystems[mnt.Fstype(m.GetFstype())]
		if !ok {
			return fmt.Errorf("%w: file system of type %s", ErrForbidden, mnt.Fstype(m.GetFstype()))
		}
		for option := range strings.SplitSeq(m.GetOptions(), ",") {
			if option != "" && !slices.Contains(known.options, option) {
				return fmt.Errorf("%w: option %q", ErrForbidden, option)
			}
		}
		kind = known.name
	} else if m.GetExtKey() != m.GetMountpoint() {
		return fmt.Errorf("%w: it is to show %s", ErrForbidden, m.GetExtKey())
	}
	for _, want := range v.policy.Mounts {
		if want.Destination != m.GetMountpoint() || want.Type != kind || kind != "" && want.Root != m.GetRoot() {
			continue
		}
		if missing := want.Flags &^ m.GetFlags(); missing != 0 {
			return fmt.Errorf("%w: flags %#x are missing", ErrForbidden, missing)
		}
		return nil
	}
	return fmt.Errorf("%w: a pod here has no such mount (type %q)", ErrForbidden, kind)
}
