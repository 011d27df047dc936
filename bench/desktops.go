package main

import (
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"time"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/demo"
)

//go:embed desktop.sh
var fullDesktopScript string

// session is a desktop that is moved.
type session struct {
	work, name, script string
	settle             time.Duration
	programs           []string
}

// desktops are the small one of the demo and a full one. What starts, starts
// for longer than until the picture changes; the full one's programs are
// waited for.
func desktops() []session {
	arguments := demo.Desktop()
	return []session{
		{desktop, "desktop", arguments[len(arguments)-2], 3 * time.Second, []string{"Xtigervnc", "openbox", "xclock", "xterm"}},
		{fullDesktop, "full", fullDesktopScript, 20 * time.Second, []string{
			"Xtigervnc", "dbus-launch", "xfce4-session", "xfwm4", "xfdesktop", "xfce4-panel", "xfce4-terminal", "mousepad", "firefox-esr", "pulseaudio", "pacat", "xterm", "wmctrl",
		}},
	}
}

// desktopCRIU is what runc's CRIU has to be told for a desktop: files that are
// open and deleted, of a size that Firefox has.
const desktopCRIU = "link-remap\nghost-limit 256M\nfile-validation filesize\n"

// desktopUser is an ordinary user.
const desktopUser = 1000

// moveDesktop moves a desktop by podd and runc.
func (m *mover) moveDesktop(ctx context.Context, s session, repetitions int) error {
	if !m.wants(s.work) {
		return nil
	}
	for _, program := range s.programs {
		if _, err := exec.LookPath(program); err != nil {
			m.record.Fail(measure.Failure{Work: s.work, Contender: podd, Reason: fmt.Sprintf("%v: ./dev bench installs it", err), Final: true})
			return nil
		}
	}
	argv := []string{"sh", "-c", s.script, "desktop"}
	pod := &trip{
		vehicle: &byPodd{
			bench: m.bench, name: s.name, flags: m.strategy,
			args: append([]string{"--user", fmt.Sprintf("%d:%d", desktopUser, desktopUser), "--env", "HOME=" + demo.DesktopHome, "--"}, argv...),
		},
		passenger: &viewing{settle: s.settle}, lab: m.lab,
	}
	container := &trip{
		vehicle: m.onHost(s.name, func(c *peer.Container) {
			// CRIU can't dump files of the machine that are open.
			c.Args = append([]string{"sh", "-c", `exec "$@" </dev/null >/dev/null 2>&1`, "desktop"}, argv...)
			c.User, c.CRIU = desktopUser, desktopCRIU
			c.Env = []string{"HOME=" + demo.DesktopHome}
		}),
		passenger: &viewing{settle: s.settle}, lab: m.lab,
	}
	return m.trips(ctx, s.work, repetitions, entry{by: podd, trip: pod}, entry{by: runc, trip: container})
}

// onHost is runc with a container on the machine's own root file system; set
// says what it runs.
func (m *mover) onHost(name string, set func(*peer.Container)) *byPeer {
	m.links++
	v := &byPeer{bench: m.bench, number: m.links, name: name, onHost: true}
	v.make = func(k *peer.Link, root hostRoot) container {
		c := peer.Container{Name: name, Root: root.root(), Writable: true, Binds: root.binds(), Filter: true}
		set(&c)
		return &peer.Runc{Program: m.runc(), Container: c, Link: k, Dir: m.dir, Images: m.images}
	}
	return v
}
