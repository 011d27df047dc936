package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Confinement is what a pod may be at most, for those who make its processes by
// other means than Start: what comes from another host must be no more than this.
type Confinement struct {
	// Capabilities are a set; bit n is capability n.
	Capabilities    uint64
	NoNewPrivileges bool
	// SystemCallFilter is the program of every pod's filter, an array of struct
	// sock_filter.
	SystemCallFilter []byte
	Mounts           []ConfinedMount
	// PIDs is how many processes and threads there may be, 0 means no limit.
	PIDs int64
}

// ConfinedMount is a mount in a pod, other than that of its root.
type ConfinedMount struct {
	Destination string
	// Type is the type of a file system of the pod's own, empty for what is
	// bound in from outside (ExternalMounts).
	Type string
	// Root is the part of the file system that is to be seen, usually "/".
	Root string
	// Flags are the restrictions, MS_RDONLY and so on.
	Flags uint32
	// Required is set where the mount hides or protects something that this
	// host's kernel has.
	Required bool
}

// restrictions are the flags of a mount that matter to Confinement.
const restrictions = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// Confinement describes the pod as Start would make it here.
func (c *Container) Confinement() (Confinement, error) {
	config, err := c.config()
	if err != nil {
		return Confinement{}, err
	}
	confined := Confinement{NoNewPrivileges: config.NoNewPrivileges, PIDs: c.record.Config.Spec.PIDs}
	if confined.SystemCallFilter, err = filterProgram(); err != nil {
		return Confinement{}, err
	}
	for _, name := range config.Capabilities.Bounding {
		number, ok := capabilityNumbers[name]
		if !ok {
			return Confinement{}, fmt.Errorf("unknown capability %s", name)
		}
		confined.Capabilities |= 1 << number
	}
	external := c.ExternalMounts()
	for _, m := range config.Mounts {
		mount := ConfinedMount{Destination: m.Destination, Flags: uint32(m.Flags) & restrictions}
		if _, bound := external[m.Destination]; bound {
			delete(external, m.Destination)
		} else {
			mount.Type, mount.Root = m.Device, "/"
		}
		confined.Mounts = append(confined.Mounts, mount)
	}
	for _, path := range config.ReadonlyPaths {
		// All are in /proc.
		mount := ConfinedMount{Destination: path, Type: "proc", Root: strings.TrimPrefix(path, "/proc"), Flags: unix.MS_RDONLY}
		if mount.Required, err = inKernel(path); err != nil {
			return Confinement{}, err
		}
		confined.Mounts = append(confined.Mounts, mount)
	}
	// What is left of the external mounts is masked, or needed only by a pod
	// from another kind of host.
	for path := range external {
		mount := ConfinedMount{Destination: path, Flags: unix.MS_RDONLY}
		for _, masked := range maskedFiles {
			if path == masked {
				mount.Flags = 0 // it shows /dev/null
			}
		}
		for _, masked := range config.MaskPaths {
			if path == masked {
				if mount.Required, err = inKernel(path); err != nil {
					return Confinement{}, err
				}
			}
		}
		confined.Mounts = append(confined.Mounts, mount)
	}
	return confined, nil
}

// inKernel reports whether this host's kernel has a file. Pods have the same.
func inKernel(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", path, err)
	}
	return true, nil
}

// capabilityNumbers are the numbers (linux/capability.h) of those that pods may have.
var capabilityNumbers = map[string]int{
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_FOWNER": unix.CAP_FOWNER,
	"CAP_FSETID": unix.CAP_FSETID, "CAP_KILL": unix.CAP_KILL, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
	"CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETPCAP": unix.CAP_SETPCAP,
	"CAP_SETUID": unix.CAP_SETUID, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
}
