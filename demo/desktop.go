package demo

import (
	_ "embed"
	"errors"
	"fmt"
	"os/exec"

	"podd/pod"
)

// Where the desktop is found in its pod. It runs as an ordinary user whom the
// image need not know. The home is in the pod's own writable layer, so what is
// saved there moves with the pod.
const (
	DesktopPort = 5900
	DesktopHome = "/var/tmp/home"
	desktopUser = "1000:1000"
)

//go:embed desktop.sh
var desktopScript string

// Desktop are the arguments of `podctl run`, besides the pod's name, that run a
// desktop in a pod of the host's own image.
func Desktop() []string {
	return []string{"--user", desktopUser, "--env", "HOME=" + DesktopHome, "--", "sh", "-c", desktopScript, "desktop"}
}

// CheckPrograms reports which of the desktop's programs are missing on this
// machine, whose userland the pod has. The error wraps pod.ErrNotFound.
func CheckPrograms() error {
	var missing []error
	for _, program := range []struct{ name, debian string }{
		{"Xtigervnc", "tigervnc-standalone-server"}, {"openbox", "openbox"}, {"xclock", "x11-apps"},
		{"xterm", "xterm"}, {"perl", "perl-base"},
	} {
		if _, err := exec.LookPath(program.name); err != nil {
			missing = append(missing, fmt.Errorf("%w (Debian's package %s has it)", err, program.debian))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: the desktop needs programs that are not installed:\n%w", pod.ErrNotFound, errors.Join(missing...))
	}
	return nil
}
