package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Feature is something the kernel must be able to do.
type Feature struct {
	Name string
	// Need says what for, Option what the kernel has to be built with.
	Need, Option string
	// Module is what can be loaded, "" when the feature is never a module.
	Module string
	// Err is why it can't.
	Err error
}

// Kernel is what the running kernel can do.
type Kernel struct {
	Release  string
	Features []Feature
}

// LookAtKernel makes the kernel do what pods need, on a thread with namespaces of
// its own, which vanish with it. Overlay is tried with the layers in dir, which
// must be where pods have theirs; empty leaves that out.
func LookAtKernel(dir string) Kernel {
	k := Kernel{Release: Release()}
	for _, ns := range []struct{ name, option string }{
		{"pid", "CONFIG_PID_NS"}, {"net", "CONFIG_NET_NS"}, {"mnt", "CONFIG_NAMESPACES"}, {"ipc", "CONFIG_IPC_NS"}, {"uts", "CONFIG_UTS_NS"},
	} {
		_, err := os.Stat("/proc/self/ns/" + ns.name)
		k.Features = append(k.Features, Feature{Name: ns.name + " namespaces", Need: "every pod has its own", Option: ns.option, Err: err})
	}
	var vxlanErr, nftErr, overlayErr error
	err := apart(func() error {
		vxlanErr, nftErr = tryNetwork()
		if dir != "" {
			overlayErr = tryOverlay(dir)
		}
		return nil
	})
	if err != nil {
		vxlanErr, nftErr, overlayErr = err, err, err
	}
	k.Features = append(k.Features,
		Feature{Name: "vxlan", Need: "a pod's virtual NIC is such a device", Option: "CONFIG_VXLAN", Module: "vxlan", Err: vxlanErr},
		Feature{Name: "nftables", Need: "a pod's connections to itself are blocked while it moves", Option: "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", Module: "nf_tables", Err: nftErr})
	if dir != "" {
		k.Features = append(k.Features, Feature{
			Name: "overlay with index and nfs_export on " + dir, Need: "a pod's writable layer, and inotify watches that move",
			Option: "CONFIG_OVERLAY_FS, on a file system such as ext4 or xfs", Module: "overlay", Err: overlayErr,
		})
	}
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err == nil && !strings.Contains(string(actions), "errno") {
		err = errors.New("filters can't answer with an error")
	}
	k.Features = append(k.Features, Feature{Name: "seccomp filters", Need: "pods are kept from what can't be moved", Option: "CONFIG_SECCOMP_FILTER", Err: err})
	return k
}

// Judge is an error for each feature that is missing.
func (k Kernel) Judge() []Finding {
	var findings []Finding
	for _, f := range k.Features {
		if f.Err == nil {
			continue
		}
		remedy := "boot a kernel with " + f.Option
		if f.Module != "" {
			remedy = fmt.Sprintf("modprobe %s && echo %s > /etc/modules-load.d/podd-%s.conf   # or %s", f.Module, f.Module, f.Module, remedy)
		}
		findings = append(findings, Bad("kernel", remedy, "%s does not work (%s): %v", f.Name, f.Need, f.Err))
	}
	if len(findings) == 0 {
		findings = append(findings, Good("kernel", "%s can do all that pods need: %d features were tried", k.Release, len(k.Features)))
	}
	return findings
}

// Release is the running kernel's, "" if it can't be had.
func Release() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return ""
	}
	return unix.ByteSliceToString(uts.Release[:])
}

// apart runs fn on a thread with network and mount namespaces of its own. The
// thread is not used again, and with it go the namespaces.
func apart(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		runtime.LockOSThread() // and never unlocked
		if err = unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			err = fmt.Errorf("making namespaces: %w", err)
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			err = fmt.Errorf("making mounts private: %w", err)
			return
		}
		err = fn()
	}()
	return <-done
}

// tryNetwork makes a labelled device and a table in the thread's namespace.
func tryNetwork() (vxlanErr, nftErr error) {
	c, err := netns.Dial("", unix.NETLINK_NETFILTER)
	if err != nil {
		return err, err
	}
	defer c.Close()
	vxlanErr = vxlan.Create(c, vxlan.Device{
		Name: "probe", Label: pod.AnchorLabel, Local: netip.MustParseAddr("127.0.0.1"), Port: vxlan.DefaultPort, MAC: vxlan.PodMAC,
	})
	nftErr = c.SendBatch(netns.Message{
		Subsystem: unix.NFNL_SUBSYS_NFTABLES, Type: unix.NFT_MSG_NEWTABLE, Flags: unix.NLM_F_CREATE, Family: unix.NFPROTO_INET,
		Parts: []*nl.RtAttr{nl.NewRtAttr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated("probe"))},
	})
	return vxlanErr, nftErr
}

// tryOverlay mounts one as pods have it, and removes what it has made below dir.
func tryOverlay(dir string) (err error) {
	top, err := os.MkdirTemp(dir, "doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(top)) }()
	in := func(name string) string { return filepath.Join(top, name) }
	for _, name := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(in(name), 0o700); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=on,nfs_export=on", in("lower"), in("upper"), in("work"))
	if err := unix.Mount("overlay", in("root"), "overlay", unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mounting it: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(in("root"), unix.MNT_DETACH)) }()
	// A kernel that can't do as it is asked falls back in silence.
	options, err := mountOptions(in("root"))
	if err != nil {
		return err
	}
	for _, option := range []string{"index=on", "nfs_export=on"} {
		if !strings.Contains(options, option) {
			return fmt.Errorf("the kernel has dropped %s: the file system lacks file handles or extended attributes", option)
		}
	}
	return nil
}

// mountOptions are the options of what is mounted at path in the calling
// thread's namespace.
func mountOptions(path string) (string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && fields[4] == path {
			return fields[len(fields)-1], nil
		}
	}
	return "", fmt.Errorf("%s is not among the mounts", path)
}

// Capabilities are those of the process.
type Capabilities struct {
	// Effective is the set, as a bit mask.
	Effective uint64
	Err       error
}

// capability is one that is needed.
type capability struct {
	number   uint
	name     string
	need     string
	severity Severity
}

// neededCapabilities are podd's. podproxy needs NET_ADMIN and NET_RAW only.
var neededCapabilities = []capability{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "namespaces and mounts", Error},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "virtual NICs", Error},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "restoring sockets", Error},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "dumping processes", Error},
	{unix.CAP_MKNOD, "CAP_MKNOD", "a pod's /dev", Error},
	{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "carrying files of any owner", Error},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", "a pod's root", Error},
	{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", "reading the limits of programs that are not root's, which CRIU must to dump them", Warning},
}

// LookAtCapabilities reads those of the calling process (proc(5)).
func LookAtCapabilities() Capabilities {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Capabilities{Err: err}
	}
	for line := range strings.Lines(string(data)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			effective, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return Capabilities{Effective: effective, Err: err}
		}
	}
	return Capabilities{Err: errors.New("/proc/self/status has no CapEff")}
}

// Judge names the capabilities that podd lacks.
func (c Capabilities) Judge() []Finding {
	if c.Err != nil {
		return []Finding{unknown("capabilities", c.Err)}
	}
	var findings []Finding
	for _, needed := range neededCapabilities {
		if c.Effective&(1<<needed.number) == 0 {
			findings = append(findings, Finding{
				Check: "capabilities", Severity: needed.severity, Detail: fmt.Sprintf("podd lacks %s: %s", needed.name, needed.need),
				Remedy: "run podd on the machine itself and not in a container, and remove CapabilityBoundingSet= from its service: systemctl edit podd",
			})
		}
	}
	if len(findings) == 0 {
		findings = append(findings, Good("capabilities", "podd has all it needs"))
	}
	return findings
}
