package podd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"podd/daemon"
	"podd/namespace"
	"podd/pod"
	"podd/vnet"
)

// Cleanup removes what podd has made in the kernel for the host as a whole,
// and leaves when it ends: the anchor device, the firewall's rule, mounts,
// abandoned network namespaces, the cgroup. It is for a host that leaves for
// good. No podd may be running, and no pod: the error wraps pod.ErrConflict if
// one is. The files in the state directory stay; once Cleanup has gone through
// nothing holds on to them. Doing it twice does no harm.
func Cleanup(config Config) error {
	s, err := config.settings()
	if err != nil {
		return err
	}
	log, err := daemon.NewLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podd cleanup must run as root; try sudo podd cleanup")
	}
	unlock, err := daemon.Lock(s.RunDir, "podd")
	if err != nil {
		return err
	}
	defer unlock()
	runtime, err := namespace.Open(namespace.Options{
		StateDir: s.StateDir, RunDir: s.RunDir, CgroupParent: s.CgroupParent, InitPath: s.InitPath, Log: log,
	})
	if err != nil {
		return err
	}
	if err := checkEmpty(runtime); err != nil {
		return err
	}
	// Without the proxy's address NICs can't be made, but anything removed.
	network, err := vnet.New(vnet.Config{Physical: s.physical, Proxy: s.physical}, log)
	if err != nil {
		return err
	}
	d := &Daemon{settings: s, log: log}
	err = errors.Join(
		network.Reconcile(d.netnsDir(), nil),
		network.RemoveAnchor(),
		network.RemoveFirewall(),
		network.Close(),
		runtime.RemoveCgroupParent(),
		d.unmountImagesDir(),
	)
	if err != nil {
		return fmt.Errorf("cleaning up host %s: %w", s.Name, err)
	}
	return nil
}

// checkEmpty is an error while pods have more here than files.
func checkEmpty(runtime *namespace.Runtime) error {
	remains, err := runtime.Remains()
	if err != nil {
		return err
	}
	var live []string
	for _, r := range remains {
		if r.Live {
			live = append(live, r.Name)
		}
	}
	if len(live) > 0 {
		return fmt.Errorf("%w: pods are here still: %s: start podd, then move them away (podctl move POD HOST) or end them (podctl stop POD)", pod.ErrConflict, strings.Join(live, ", "))
	}
	return nil
}

// unmountImagesDir undoes mountImagesDir.
func (d *Daemon) unmountImagesDir() error {
	// EINVAL: nothing is mounted there.
	if err := unix.Unmount(d.imagesDir(), unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting %s: %w", d.imagesDir(), err)
	}
	return nil
}
