//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/vnet/netns"
)

// awaitReconciled waits until a host has put something right: doctor makes podd
// look, which it does every minute otherwise.
func awaitReconciled(t *testing.T, host, what string, check func() error) {
	t.Helper()
	until(t, what, func() error {
		err := check()
		if err != nil {
			podctl(t, "doctor", host)
			err = check()
		}
		return err
	})
}

// cgroupsOf are the directories of a cgroup: one for each controller in version 1.
func cgroupsOf(t *testing.T, host, name string) []string {
	t.Helper()
	parents := []string{filepath.Join("/sys/fs/cgroup", theLab.CgroupParent(host))}
	if _, err := os.Stat(parents[0]); errors.Is(err, fs.ErrNotExist) {
		if parents, err = filepath.Glob(filepath.Join("/sys/fs/cgroup/*", theLab.CgroupParent(host))); err != nil {
			t.Fatal(err)
		}
	}
	var dirs []string
	for _, parent := range parents {
		dirs = append(dirs, filepath.Join(parent, name))
	}
	return dirs
}

// What nobody wants goes while podd runs, and a pod that somebody has frozen goes on.
func TestReconcile(t *testing.T) {
	p := newPython(t, "", "steady", 7000)
	conn := dialLines(t, p.awaitPort(7000))
	// The host has had a pod, so that its cgroup is there.
	p.move("b")
	conn.ask("hello")
	const ghost = "ghost.3"
	run, state := theLab.RunDir("b"), theLab.StateDir("b")
	for _, dir := range append(cgroupsOf(t, "b", ghost),
		filepath.Join(state, "pods", ghost, "upper"), filepath.Join(run, "containers", ghost, "rootfs"), filepath.Join(run, "checkpoint", "target-"+ghost)) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Create(filepath.Join(run, "netns", "ghost-3"), nil); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "1000")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	t.Cleanup(func() { process.Process.Kill() }) // if the test fails before
	for _, dir := range cgroupsOf(t, "b", ghost) {
		// Some controllers want to be set up first; podd finds the others.
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(process.Process.Pid)), 0)
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	// And somebody freezes the pod.
	frozen := 0
	for _, dir := range cgroupsOf(t, "b", fmt.Sprintf("%s.%d", p.name, p.inspect().Epoch)) {
		if os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("FROZEN"), 0) == nil {
			frozen++
		}
	}
	if frozen == 0 { // not version 1
		for _, dir := range cgroupsOf(t, "b", fmt.Sprintf("%s.%d", p.name, p.inspect().Epoch)) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	awaitReconciled(t, "b", "nothing is left of what nobody wants", func() error { return remains("b", "ghost", 0) })
	select {
	case <-ended:
	case <-time.After(commandTimeout):
		t.Error("the process of no pod lives on")
	}
	conn.ask("still there?")
	log := theLab.LogTail("b", 200)
	for _, kind := range []string{"container", "frozen", "images"} {
		if !strings.Contains(log, "drift="+kind) {
			t.Errorf("podd does not say that it has put right a %s", kind)
		}
	}
	if said := podctl(t, "doctor", "b").stdout; !strings.Contains(said, "thawed") {
		t.Errorf("doctor does not tell of the pod that was thawed:\n%s", said)
	}
}

// A host is taken for lost, its pod is removed and made anew elsewhere. But the
// host is only stopped: the copy there goes on speaking, and nobody hears it; when
// podd goes on it ends the copy.
func TestSupersededCopy(t *testing.T) {
	const port = 9999
	beat := fmt.Sprintf("while :; do echo beat >/dev/udp/%s/%d || :; sleep 0.02; done", theLab.Address(lab.Client), port)
	old := newPodOn(t, "b", "", "--", "bash", "-c", beat)
	was := old.inspect()
	conn, err := theLab.ListenPacket(bounded(t), lab.Client, "udp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// heard waits for a packet for a while and says whose it is.
	heard := func(limit time.Duration) string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		_, from, err := conn.ReadFrom(make([]byte, 100))
		var network net.Error
		if errors.As(err, &network) && network.Timeout() {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		return from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()
	}
	if from := heard(commandTimeout); from != was.PublicAddress.String() {
		t.Fatalf("heard %q, want the pod at %s", from, was.PublicAddress)
	}
	init := initOf(t, "b", old.name, was.Epoch)
	kill(t, "b", unix.SIGSTOP)
	t.Cleanup(func() { theLab.Kill("b", unix.SIGCONT) }) // if the test fails before
	until(t, "the host is taken for dead", func() error {
		if r := podctl(t, "rm", old.name); !strings.Contains(r.stderr, "gone for good") {
			return errors.New(r.stderr)
		}
		return nil
	})
	mustPodctl(t, "rm", "--force", old.name)
	old.removed = true
	anew := newPodOn(t, "c", "", "--", "bash", "-c", "while :; do sleep 0.1; done")
	if anew.name != old.name {
		t.Fatalf("the pods are %s and %s", old.name, anew.name)
	}
	for heard(500*time.Millisecond) != "" {
		// what was on its way
	}
	// It still speaks, in vain.
	said := listen(t)
	until(t, "the old copy has spoken", func() error {
		said.mu.Lock()
		defer said.mu.Unlock()
		if u := said.speakers[speaker{"b", was.Label}]; u == nil || u.last-u.first < 20 {
			return errors.New("not yet")
		}
		return nil
	})
	if from := heard(500 * time.Millisecond); from != "" {
		t.Errorf("the client has heard %s", from)
	}
	if err := unix.Kill(init, 0); err != nil {
		t.Errorf("the old copy is not there any more, so the test proves nothing: %v", err)
	}
	kill(t, "b", unix.SIGCONT)
	until(t, "the old copy is gone", func() error { return remains("b", old.name, 0) })
	if !strings.Contains(theLab.LogTail("b", 200), "drift=superseded") {
		t.Error("podd does not say that it has ended a superseded copy")
	}
	if out := anew.shell("echo well"); out != "well" {
		t.Errorf("the new pod says %q", out)
	}
	if from := heard(500 * time.Millisecond); from != "" {
		t.Errorf("the client has heard %s", from)
	}
}
