package namespace

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"podd/namespace/image"
	"podd/pod"
)

// defaultPath is the PATH where neither image nor user sets one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capabilities are what the root of a pod may at most: podman's default set
// (containers/common, pkg/config).
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
	"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// What a pod must not see or change of the kernel's files, as podman has it
// (containers/podman, pkg/specgen/generate/config_linux.go), by what is there:
// libcontainer binds /dev/null over files and an empty directory over
// directories. Those that a kernel does not have are passed over.
var (
	maskedFiles = []string{
		"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list",
		"/proc/timer_stats", "/proc/interrupts",
	}
	maskedDirs = []string{
		"/proc/acpi", "/proc/scsi", "/sys/dev/block", "/sys/devices/virtual/powercap", "/sys/firmware",
		"/sys/fs/selinux",
	}
	readonlyPaths = []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

const noAccess = unix.MS_NOSUID | unix.MS_NODEV

// binds are the mounts of the pod that show something of the host's.
func (c *Container) binds() []*configs.Mount {
	bind := func(source, destination string, flags int) *configs.Mount {
		return &configs.Mount{Device: "bind", Source: source, Destination: destination, Flags: unix.MS_BIND | flags}
	}
	mounts := []*configs.Mount{
		bind(filepath.Join(c.paths.volatile, "dev"), "/dev", unix.MS_NOSUID),
		bind(filepath.Join(c.paths.volatile, "tmp"), "/tmp", noAccess),
		bind(filepath.Join(c.paths.volatile, "run"), "/run", noAccess),
	}
	if c.record.Image.Name == image.HostName {
		for _, dir := range bound {
			if isMount(dir) {
				mounts = append(mounts, bind(dir, dir, unix.MS_NODEV|unix.MS_RDONLY))
			}
		}
	}
	if cgroups.IsCgroup2UnifiedMode() {
		// The pod's own part of the hierarchy, so that programs find their limits.
		mounts = append(mounts, bind(filepath.Join(cgroupRoot, c.paths.cgroup), cgroupRoot,
			noAccess|unix.MS_NOEXEC|unix.MS_RDONLY))
	}
	for _, v := range sortedVolumes(c.record.Config.Spec.Volumes) {
		flags := noAccess
		if v.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		mounts = append(mounts, bind(c.volumeSource(v), v.Destination, flags))
	}
	return mounts
}

// config is how libcontainer is told to make the pod.
func (c *Container) config() (*configs.Config, error) {
	limits, err := rlimits()
	if err != nil {
		return nil, err
	}
	namespaces := configs.Namespaces{{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS}}
	namespaces.Add(configs.NEWNET, c.record.Config.NetNS)
	mounts := []*configs.Mount{
		{Device: "proc", Source: "proc", Destination: "/proc", Flags: noAccess | unix.MS_NOEXEC},
		{Device: "sysfs", Source: "sysfs", Destination: "/sys", Flags: noAccess | unix.MS_NOEXEC | unix.MS_RDONLY},
	}
	binds := c.binds()
	mounts = append(mounts, binds[0], // /dev, before what is mounted in it
		&configs.Mount{Device: "devpts", Source: "devpts", Destination: "/dev/pts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC,
			Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		&configs.Mount{Device: "mqueue", Source: "mqueue", Destination: "/dev/mqueue", Flags: noAccess | unix.MS_NOEXEC})
	mounts = append(mounts, binds[1:]...)
	umask := uint32(0o022)
	oomScore := 0
	spec := c.record.Config.Spec
	return &configs.Config{
		Rootfs:          c.paths.rootfs,
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		Umask:           &umask,
		Mounts:          mounts,
		Hostname:        spec.Name,
		Namespaces:      namespaces,
		Capabilities:    &configs.Capabilities{Bounding: capabilities, Permitted: capabilities, Effective: capabilities},
		Cgroups:         c.cgroupConfig(),
		Rlimits:         limits,
		OomScoreAdj:     &oomScore,
		MaskPaths:       append(append([]string(nil), maskedFiles...), maskedDirs...),
		ReadonlyPaths:   readonlyPaths,
		NoNewPrivileges: spec.NoNewPrivileges,
		Version:         specs.Version,
	}, nil
}

// rlimits are the same on every host, because CRIU can lower limits where a pod
// arrives but perhaps not raise them. They are systemd's defaults, as far as
// this process may go itself.
func rlimits() ([]configs.Rlimit, error) {
	var list []configs.Rlimit
	for _, want := range []configs.Rlimit{
		{Type: unix.RLIMIT_NOFILE, Soft: 1024, Hard: 512 << 10},
		{Type: unix.RLIMIT_CORE, Soft: 0, Hard: unix.RLIM_INFINITY},
	} {
		var have unix.Rlimit
		if err := unix.Getrlimit(want.Type, &have); err != nil {
			return nil, fmt.Errorf("reading resource limit %d: %w", want.Type, err)
		}
		want.Hard = min(want.Hard, have.Max)
		want.Soft = min(want.Soft, want.Hard)
		list = append(list, want)
	}
	return list, nil
}

// deviceRules allow the devices that /dev has and terminals.
func deviceRules() []*devices.Rule {
	rules := []*devices.Rule{
		{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: false},
	}
	allow := func(major, minor int64) {
		rules = append(rules, &devices.Rule{Type: devices.CharDevice, Major: major, Minor: minor, Permissions: "rwm", Allow: true})
	}
	for _, dev := range deviceNodes {
		allow(int64(dev.major), int64(dev.minor))
	}
	allow(5, 2)                  // ptmx
	allow(136, devices.Wildcard) // the terminals of devpts
	return rules
}

// initProcess is the pod's init and, by its arguments, the main command. The
// init stays root so that it can signal every process; it is under the same
// system call filter and capability bounds as all others.
// It closes ready when the pod can be spoken to.
func (c *Container) initProcess(ready, filter *os.File) (*libcontainer.Process, error) {
	spec, img := c.record.Config.Spec, c.record.Image.Config
	command := img.Command(spec.Command)
	if len(command) == 0 {
		return nil, fmt.Errorf("%w: no command given, and image %q has none of its own", pod.ErrInvalid, spec.Image)
	}
	user, err := c.user(c.userName(""))
	if err != nil {
		return nil, err
	}
	// The first extra file has descriptor 3.
	args := append([]string{initDir + "/init", "run", "--ready-fd", "3", "--filter-fd", "4", "--cwd", c.workDir("")}, identity(user)...)
	if spec.TTY {
		args = append(args, "--tty")
	}
	if spec.Stdin {
		args = append(args, "--stdin")
	}
	if segment := c.runtime.opts.LogSegment; segment > 0 {
		args = append(args, "--log-segment", strconv.FormatInt(segment, 10))
	}
	env := []string{"PATH=" + defaultPath, "HOME=" + user.Home, "HOSTNAME=" + spec.Name, "container=podd"}
	if spec.TTY {
		env = append(env, "TERM=xterm")
	}
	return &libcontainer.Process{
		Init: true,
		Args: append(append(args, "--"), command...),
		Env:  mergeEnv(env, img.Env, spec.Env),
		Cwd:  "/",

		ExtraFiles: []*os.File{ready, filter},
	}, nil
}

// workDir is where a command starts: where it was asked to, else where the pod
// or its image does.
func (c *Container) workDir(asked string) string {
	for _, dir := range []string{asked, c.record.Config.Spec.WorkDir, c.record.Image.Config.WorkingDir} {
		if dir != "" {
			return dir
		}
	}
	return "/"
}
