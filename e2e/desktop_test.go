//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"podd/demo"
	"podd/e2e/workload/vncclient"
	"podd/lab"
)

// TestDesktop moves a remote desktop around while a viewer looks at it: the one
// connection lives, the picture goes on changing, and the terminal's shell is
// the same process with the same variables and gets what is typed.
func TestDesktop(t *testing.T) {
	if err := demo.CheckPrograms(); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "", demo.Desktop()...)
	d := &desktop{testPod: p, viewer: connectViewer(t, p.awaitPort(demo.DesktopPort))}
	d.findTerminal()
	shell := d.ask(`token=kept-$$; echo $$`)
	connections := d.connections()

	for _, target := range []string{"b", "c", "a"} {
		before := d.viewer.Picture()
		d.viewer.ResetSilence()
		d.move(target)
		d.look(100)
		t.Logf("the viewer's longest time without a change: %v", d.viewer.Stats().Silence)
		if bytes.Equal(before.Pix, d.viewer.Picture().Pix) {
			t.Errorf("the picture is the same after the move to %s", target)
		}
		if got, want := d.ask(`echo $$ $token`), shell+" kept-"+shell; got != want {
			t.Errorf("after the move to %s the terminal's shell says %q, want %q", target, got, want)
		}
		if got := d.shell("tr '\\0' ' ' </proc/" + shell + "/cmdline"); got != "bash --norc" {
			t.Errorf("after the move to %s process %s is %q", target, shell, got)
		}
		if got := d.connections(); got != connections {
			t.Errorf("after the move to %s the server's connections are\n%s\nwant\n%s", target, got, connections)
		}
	}
}

// desktop is a pod with a desktop, and its viewer.
type desktop struct {
	*testPod
	viewer *vncclient.Client
}

// connectViewer connects a viewer for as long as the test lasts. That its
// connection lives is asserted by everything that waits for it.
func connectViewer(t *testing.T, address string) *vncclient.Client {
	t.Helper()
	conn, err := theLab.Dial(bounded(t), lab.Client, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	viewer, err := vncclient.Connect(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := viewer.Close(); err != nil {
			t.Error(err)
		}
	})
	return viewer
}

// look waits until the picture has changed a number of times.
func (d *desktop) look(changes int64) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	if err := d.viewer.WaitUpdates(ctx, changes); err != nil {
		d.t.Fatalf("looking at the desktop: %v", err)
	}
}

// findTerminal gives the terminal the keyboard and waits until its shell
// answers, in a file. What is typed before the window manager has acted on the
// click goes elsewhere, so it is done until it works.
func (d *desktop) findTerminal() {
	d.t.Helper()
	until(d.t, "the terminal's shell answers", func() error {
		if err := d.viewer.Click(200, 200); err != nil {
			return err
		}
		d.look(10)
		if err := d.viewer.Type("clear; >answers\n"); err != nil {
			return err
		}
		d.look(10)
		if r := podctl(d.t, "exec", d.name, "--", "test", "-e", answers); r.code != 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

const answers = demo.DesktopHome + "/answers"

// ask types a command into the terminal and returns what it writes.
func (d *desktop) ask(command string) string {
	d.t.Helper()
	read := func() string { return mustPodctl(d.t, "exec", d.name, "--", "cat", answers) }
	before := read()
	if err := d.viewer.Type(command + " | tee -a answers\n"); err != nil {
		d.t.Fatal(err)
	}
	var answer string
	until(d.t, fmt.Sprintf("the terminal's shell has done %q", command), func() error {
		after := strings.TrimPrefix(read(), before)
		var ok bool
		if answer, ok = strings.CutSuffix(after, "\n"); !ok {
			return fmt.Errorf("it wrote %q", after)
		}
		return nil
	})
	return answer
}

// connections lists the X server's connections with viewers, as the pod's
// kernel sees them: addresses, ports, state.
func (d *desktop) connections() string {
	d.t.Helper()
	return d.shell(fmt.Sprintf(`awk '$2 ~ /:%04X$/ && $4 == "01" { print $2, $3 }' /proc/net/tcp`, demo.DesktopPort))
}
