package namespace

import (
	"fmt"
	"slices"
	"sync"

	profile "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// systemCallFilter is the default filter of containers for the capabilities a
// pod has, which is Docker's; podman's is an older and laxer version of it
// (mount, ptrace of others, keyctl and some more are allowed there and not
// here). Two things are added for the sake of moving:
//
//   - io_uring_* fail with ENOSYS, because CRIU can't dump a ring and programs
//     that find none use epoll;
//   - landlock_* fail with ENOSYS, because CRIU restores a process without its
//     Landlock restrictions, and one that believes itself confined must be so;
//     to programs it is a kernel without Landlock;
//   - clone and unshare fail with EPERM for any new namespace and clone3, whose
//     flags a filter can't see, with ENOSYS, so that the C library falls back
//     to clone. The profile has these already for a pod without CAP_SYS_ADMIN;
//     browsers take it for a system without user namespaces.
var systemCallFilter = sync.OnceValues(func() (*configs.Seccomp, error) {
	caps := &specs.LinuxCapabilities{Bounding: capabilities}
	spec, err := profile.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: caps}})
	if err != nil {
		return nil, fmt.Errorf("making the system call filter: %w", err)
	}
	unmovable := []string{
		"io_uring_setup", "io_uring_enter", "io_uring_register",
		"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
	}
	for i := range spec.Syscalls {
		spec.Syscalls[i].Names = slices.DeleteFunc(spec.Syscalls[i].Names, func(name string) bool {
			return slices.Contains(unmovable, name)
		})
	}
	enosys := uint(unix.ENOSYS)
	spec.Syscalls = append(spec.Syscalls, specs.LinuxSyscall{Names: unmovable, Action: specs.ActErrno, ErrnoRet: &enosys})
	refuseAudit(spec)
	filter, err := specconv.SetupSeccomp(spec)
	if err != nil {
		return nil, fmt.Errorf("making the system call filter: %w", err)
	}
	return filter, nil
})

// refuseAudit makes socket(AF_NETLINK, ..., NETLINK_AUDIT) fail with EINVAL. The
// rules of one system call must not overlap, so the profile's rule that allows
// netlink among other families is narrowed.
func refuseAudit(spec *specs.LinuxSeccomp) {
	const family, protocol = 0, 2 // the arguments of socket(2)
	for i := range spec.Syscalls {
		rule := &spec.Syscalls[i]
		if !slices.Equal(rule.Names, []string{"socket"}) || len(rule.Args) != 1 ||
			rule.Args[0].Index != family || rule.Args[0].Op != specs.OpLessThan || rule.Args[0].Value <= unix.AF_NETLINK {
			continue
		}
		below := *rule
		below.Args = []specs.LinuxSeccompArg{{Index: family, Value: unix.AF_NETLINK, Op: specs.OpLessThan}}
		rule.Args = append(slices.Clone(rule.Args), specs.LinuxSeccompArg{Index: protocol, Value: unix.NETLINK_AUDIT, Op: specs.OpNotEqual})
		spec.Syscalls = append(spec.Syscalls, below)
		break
	}
	einval := uint(unix.EINVAL)
	spec.Syscalls = append(spec.Syscalls, specs.LinuxSyscall{
		Names:    []string{"socket"},
		Action:   specs.ActErrno,
		ErrnoRet: &einval,
		Args: []specs.LinuxSeccompArg{
			{Index: family, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
			{Index: protocol, Value: unix.NETLINK_AUDIT, Op: specs.OpEqualTo},
		},
	})
}
