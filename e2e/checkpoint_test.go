//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"podd/archive"
	"podd/e2e/workload"
	"podd/lab"
	"podd/pod"
	"podd/trust"
)

// write writes a pod into a file and returns its path.
func (p *testPod) write(name string, args ...string) (path string) {
	p.t.Helper()
	path = filepath.Join(p.t.TempDir(), name)
	mustPodctl(p.t, append([]string{"checkpoint", p.name, "-q", "-o", path}, args...)...)
	info, err := os.Stat(path)
	if err != nil {
		p.t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		p.t.Errorf("the file's mode is %v", info.Mode())
	}
	return path
}

// A pod in use is written and goes on; no byte is wrong. A copy of it with all
// its data runs beside it.
func TestCheckpointLeaveRunning(t *testing.T) {
	const secret = "marker-0d3f9a41c7"
	server := newPod(t, "", "-e", "PASSWORD="+secret, "--", "sh", "-euc", `mkdir /srv/redis
exec redis-server --bind 0.0.0.0 --protected-mode no --dir /srv/redis --appendonly yes`)
	address := server.awaitPort(6379)
	server.exec("redis-cli", "set", "kept", secret)
	client := workload.NewRedis(workload.RedisConfig{Address: address, Dial: fromClient})
	load := startLoad(t, client)
	before := server.inspect()
	path := server.write("redis.podd", "--leave-running")
	t.Logf("the longest silence was %v", load.Lap())
	if after := server.inspect(); after != before {
		t.Errorf("the pod is %+v; it was %+v", after, before)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, clear := range []string{secret, "PASSWORD", "redis-server", "appendonly"} {
		if bytes.Contains(data, []byte(clear)) {
			t.Errorf("%q can be read in the file", clear)
		}
	}
	if said := mustPodctl(t, "checkpoint", "inspect", path); !strings.Contains(said, "verified: host a") {
		t.Errorf("podctl checkpoint inspect says\n%s", said)
	}

	requireRefused(t, codeError, []string{"conflict", server.name + " is running on host a"}, "restore", "--host", "b", path)
	requireRefused(t, codeError, []string{"already exists", server.name}, "restore", "--force-new-identity", path)
	for _, host := range []string{"a", "b"} {
		copied := &testPod{t: t, name: server.name + "-" + host}
		t.Cleanup(copied.remove)
		mustPodctl(t, "restore", "-q", "--host", host, "--force-new-identity", "--name", copied.name, path)
		if now := copied.inspect(); now.Host != host || now.Phase != pod.PhaseRunning || now.VirtualAddress == before.VirtualAddress || now.Label == before.Label {
			t.Errorf("the copy is %+v", now)
		}
		if got := copied.exec("redis-cli", "get", "kept"); got != secret {
			t.Errorf("the copy has %q", got)
		}
		copied.exec("redis-cli", "set", "kept", "changed")
		if got := copied.exec("hostname"); got != copied.name {
			t.Errorf("the copy calls itself %q", got)
		}
		if names := copied.exec("cat", "/etc/hosts", "/etc/hostname"); strings.Contains(names, before.VirtualAddress.String()) {
			t.Errorf("the copy has the address of the original in\n%s", names)
		}
		copied.awaitPort(6379)
	}
	if got := server.exec("redis-cli", "get", "kept"); got != secret {
		t.Errorf("after its copies were changed the original has %q", got)
	}
	load.finish()
	if err := client.Verify(bounded(t)); err != nil {
		t.Errorf("keys and times to live: %v", err)
	}
	requireTidy(t)
}

// A pod is written and so stopped, and goes on on another host with its
// connections. What has become old is refused.
func TestCheckpointRestore(t *testing.T) {
	server := newPython(t, "", "python", 7000)
	line := dialLines(t, server.awaitPort(7000))
	if got := line.ask("one"); got != "python 1 one" {
		t.Fatalf("reply %q", got)
	}
	first := server.write("first.podd", "--leave-running")
	if got := line.ask("two"); got != "python 2 two" {
		t.Fatalf("reply %q", got)
	}
	before := server.inspect()
	path := server.write("second.podd")
	if now := server.inspect(); now.Phase != pod.PhaseStopped || now.Epoch != before.Epoch || now.VirtualAddress != before.VirtualAddress {
		t.Errorf("the pod is %+v; it was %+v", now, before)
	}
	requireTidy(t)
	requireRefused(t, codeError, []string{"conflict", "went on after the file was written"}, "restore", first)
	requireRefused(t, codeError, []string{"wrong phase", "stopped"}, "checkpoint", server.name, "-o", first+".more")

	mustPodctl(t, "restore", "-q", "--host", "b", path)
	after := server.inspect()
	if after.Phase != pod.PhaseRunning || after.Host != "b" || after.Epoch <= before.Epoch || after.Label == before.Label ||
		after.VirtualAddress != before.VirtualAddress || after.PublicAddress != before.PublicAddress {
		t.Errorf("the pod is %+v; it was %+v", after, before)
	}
	if got := line.ask("three"); got != "python 3 three" {
		t.Errorf("on the connection from before comes %q", got)
	}
	requireRefused(t, codeError, []string{"conflict", server.name + " is running on host b"}, "restore", path)

	// It is a pod like any other.
	server.move("c")
	server.move("a")
	if got := line.ask("four"); got != "python 4 four" {
		t.Errorf("after two moves comes %q", got)
	}
	third := server.write("third.podd")
	requireRefused(t, codeError, []string{"conflict", "old one"}, "restore", path)
	mustPodctl(t, "rm", server.name)
	mustPodctl(t, "restore", "-q", "--host", "a", third)
	if got := line.ask("five"); got != "python 5 five" {
		t.Errorf("after a removal comes %q", got)
	}
	requireTidy(t)
}

// Somebody else has the address by now.
func TestRestoreAddressTaken(t *testing.T) {
	server := newShell(t, "", "sleep 1000")
	path := server.write("pod.podd")
	mustPodctl(t, "rm", server.name)
	mustPodctl(t, "restore", "-q", "--name", server.name+"-other", path)
	other := &testPod{t: t, name: server.name + "-other"}
	t.Cleanup(other.remove)
	server.removed = true
	requireRefused(t, codeError, []string{"conflict", other.name + " has the address"}, "restore", path)
	requireTidy(t)
}

// resign changes a file's header and signs it as the host would.
func resign(t *testing.T, path string, change func(*archive.Header), host string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	envelope, err := archive.ReadEnvelope(f)
	if err != nil {
		t.Fatal(err)
	}
	store, err := trust.Open(trust.Dir(theLab.StateDir(host)))
	if err != nil {
		t.Fatal(err)
	}
	members, err := envelope.Open(f, store.Secret())
	if err != nil {
		t.Fatal(err)
	}
	defer members.Close()
	var sources []archive.Source
	for {
		member, content, err := members.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, archive.Source{Member: member, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		}})
	}
	header := envelope.Header
	change(&header)
	recipients, err := archive.Recipients(store.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := archive.Write(&out, header, sources, archive.Signer{Key: store.Key(), Chain: store.Chain()}, recipients...); err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "changed.podd")
	if err := os.WriteFile(changed, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return changed
}

// Files that do not fit, or are not what a host has written, are refused before
// anything is made.
func TestBadCheckpointFiles(t *testing.T) {
	by := newBystander(t)
	server := newShell(t, "", "echo hello; sleep 1000")
	path := server.write("pod.podd", "--leave-running")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(change func([]byte) []byte) string {
		return workFile(t, "damaged.podd", string(change(bytes.Clone(data))), 0o600)
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	for name, test := range map[string]struct {
		path  string
		words []string
	}{
		"text":          {workFile(t, "text", "hello", 0o600), []string{"not a whole checkpoint file"}},
		"empty":         {workFile(t, "empty", "", 0o600), []string{"ends in the middle"}},
		"other version": {damaged(func(b []byte) []byte { b[7]++; return b }), []string{"version 2"}},
		"header":        {damaged(func(b []byte) []byte { return bytes.Replace(b, []byte(`"epoch":1`), []byte(`"epoch":9`), 1) }), []string{"not to be trusted", "signature"}},
		"body":          {damaged(flip(len(data) / 2)), []string{"checkpoint file"}},
		"last byte":     {damaged(flip(len(data) - 1)), []string{"checkpoint file"}},
		"cut":           {damaged(func(b []byte) []byte { return b[:len(b)-100] }), []string{"checkpoint file"}},
		"more":          {damaged(func(b []byte) []byte { return append(b, 'x') }), []string{"checkpoint file"}},
		"processor": {resign(t, path, func(h *archive.Header) { h.CPUFlags = append(h.CPUFlags, "warpdrive") }, "a"),
			[]string{"can't be restored", "its processor lacks warpdrive"}},
		"kernel":       {resign(t, path, func(h *archive.Header) { h.Kernel = "99.1.0" }, "a"), []string{"is older than 99.1.0"}},
		"CRIU":         {resign(t, path, func(h *archive.Header) { h.CRIU = 30000 }, "a"), []string{"was written with 3.0.0"}},
		"other host":   {resign(t, path, func(*archive.Header) {}, "b"), []string{"not to be trusted", "host b has signed for host a"}},
		"other pod":    {resign(t, path, func(h *archive.Header) { h.Pod = "somebody" }, "a"), []string{"not that of the header"}},
		"no container": {resign(t, path, func(h *archive.Header) { h.Epoch = 7 }, "a"), []string{"not that of the header"}},
	} {
		t.Run(name, func(t *testing.T) {
			requireRefused(t, codeError, test.words, "restore", "-q", "--host", "b", "--force-new-identity", "--name", "bad-file", test.path)
			if r := podctl(t, "inspect", "bad-file"); r.code == 0 {
				t.Errorf("there is a pod:\n%s", r.stdout)
			}
			by.requireUndisturbed(t)
		})
	}
}

// A file for somebody in particular is decrypted by podctl.
func TestCheckpointRecipients(t *testing.T) {
	server := newShell(t, "", "sleep 1000")
	identity, recipient := newIdentity(t)
	path := server.write("pod.podd", "--recipient", recipient, "--only-recipients")
	requireRefused(t, codeError, []string{"permission denied", "--identity FILE"}, "restore", path)
	mustPodctl(t, "restore", "-q", "--identity", identity, "--host", "c", path)
	if now := server.inspect(); now.Host != "c" || now.Phase != pod.PhaseRunning {
		t.Errorf("the pod is %+v", now)
	}
}

// New connections come all the time. On a machine of any speed each dialer has one
// that waits to be accepted for a small part of it: nobody holds them off.
func TestCheckpointBusyListener(t *testing.T) {
	server := newPython(t, "", "python", 7000)
	address := server.awaitPort(7000)
	var dialers []*background
	for range 4 {
		dialers = append(dialers, keepDoing(t, func(int) error {
			began := time.Now()
			conn, err := theLab.Dial(context.Background(), lab.Client, "tcp", address)
			if err != nil {
				return err
			}
			c := &lineConn{conn: conn, reader: bufio.NewReader(conn)}
			_, err = c.roundTrip("hello") // by now it is accepted
			taken := time.Since(began)
			err = errors.Join(err, conn.Close())
			<-time.After(20 * taken)
			return err
		}))
	}
	for range 5 {
		server.write("pod.podd", "--leave-running")
	}
	for _, d := range dialers {
		d.stop()
	}
}

// Volumes whose policy says so are in the file. A directory of the host is not
// overwritten.
func TestCheckpointVolumes(t *testing.T) {
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server := newPod(t, "", "-v", "own:/own", "-v", shared+":/copied:copy", "--", "sh", "-euc", "echo own > /own/file; sleep 1000")
	path := server.write("pod.podd")
	requireRefused(t, codeError, []string{"can't be restored", shared + " is not empty"}, "restore", "--host", "b", path)
	if err := os.Rename(shared, shared+".old"); err != nil {
		t.Fatal(err)
	}
	mustPodctl(t, "restore", "-q", "--host", "b", path)
	if got := server.shell("cat /own/file /copied/file"); got != "own\nfrom the host" {
		t.Errorf("the volumes have %q", got)
	}
}

// Who may not run such a pod may not restore it.
func TestRestoreRoles(t *testing.T) {
	operator, viewer := newRemoteUser(t, trust.RoleOperator), newRemoteUser(t, trust.RoleViewer)
	private := newShell(t, "private", "sleep 1000")
	path := filepath.Join(t.TempDir(), "pod.podd")
	requireResult(t, viewer.podctl("checkpoint", private.name, "-o", path), codeError, []string{"permission denied", "CheckpointPod"}, "a viewer's checkpoint")
	if r := operator.podctl("checkpoint", private.name, "-q", "-o", path); r.code != 0 {
		t.Fatalf("an operator's checkpoint: %s", r.stderr)
	}
	requireResult(t, viewer.podctl("restore", path), codeError, []string{"permission denied", "RestorePod"}, "a viewer's restore")
	requireResult(t, operator.podctl("restore", "--force-new-identity", "--name", private.name+"-copy", path), codeError,
		[]string{"permission denied", "new identity"}, "an operator's copy")
	if r := operator.podctl("restore", "-q", path); r.code != 0 {
		t.Errorf("an operator's restore: %s", r.stderr)
	}
	if said := viewer.podctl("checkpoint", "inspect", path); !strings.Contains(said.stdout, "verified: host a") {
		t.Errorf("a viewer sees\n%s%s", said.stdout, said.stderr)
	}
	exposed := newPod(t, "exposed", "-v", t.TempDir()+":/srv", "--", "sleep", "1000")
	path = exposed.write("exposed.podd")
	requireResult(t, operator.podctl("restore", path), codeError, []string{"permission denied", "directories of a host"}, "an operator's restore of a pod with a directory of the host")
	requireTidy(t)
}

// stalled is a checkpoint whose file nobody takes.
type stalled struct {
	cmd *exec.Cmd
	out io.ReadCloser
}

// stallCheckpoint has a pod with a lot of memory be written to a pipe that fills
// up, and returns when it is frozen.
func stallCheckpoint(t *testing.T, p *testPod) *stalled {
	t.Helper()
	cmd := podctlCommand(bounded(t), "a", "checkpoint", p.name, "-q", "-o", "-")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); out.Close(); cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	return &stalled{cmd, out}
}

// largePython is newPython with memory that can't be compressed, so that its
// file does not fit into the buffers on the way.
func largePython(t *testing.T) *testPod {
	t.Helper()
	return newPod(t, "", "--", "/usr/bin/python3", "-c", "import os; ballast = os.urandom(64 << 20)\n"+pythonServer, "python", "7000")
}

// Until the file is stored the pod is not lost: podctl dies, or podd.
func TestCheckpointInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(*testing.T, *stalled){
		"podctl": func(t *testing.T, s *stalled) {
			if err := s.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		},
		"podd": func(t *testing.T, s *stalled) { downtime(t, "a", unix.SIGKILL, func() {}) },
	} {
		t.Run(name, func(t *testing.T) {
			server := largePython(t)
			line := dialLines(t, server.awaitPort(7000))
			if got := line.ask("one"); got != "python 1 one" {
				t.Fatalf("reply %q", got)
			}
			before := server.inspect()
			interrupt(t, stallCheckpoint(t, server))
			if got := line.ask("two"); got != "python 2 two" {
				t.Errorf("reply %q", got)
			}
			if after := server.inspect(); after != before {
				t.Errorf("the pod is %+v; it was %+v", after, before)
			}
			requireTidy(t)
			server.move("b")
			if got := line.ask("three"); got != "python 3 three" {
				t.Errorf("after a move comes %q", got)
			}
		})
	}
}

// newIdentity makes a key for files, and returns the file it is in and the
// public key.
func newIdentity(t *testing.T) (path, recipient string) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return workFile(t, "identity", identity.String()+"\n", 0o600), identity.Recipient().String()
}

// killAt has the daemon of a node die when it comes to a point while the work is
// done, and starts it again.
func killAt(t *testing.T, node, point string, work func()) {
	t.Helper()
	file := filepath.Join(theLab.RunDir(node), "faults")
	if err := os.WriteFile(file, []byte(point+" kill\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}()
	work()
	if err := theLab.Wait(bounded(t), node); err != nil {
		t.Error(err)
	}
	if err := theLab.Start(bounded(t), node); err != nil {
		t.Fatal(err)
	}
}

// podd dies while it restores: before anything was decided it is as if nothing
// had been, afterwards the pod runs.
func TestRestoreInterrupted(t *testing.T) {
	for point, runs := range map[string]bool{"restore:unpacked": false, "restore:committed": true} {
		t.Run(point, func(t *testing.T) {
			server := newPython(t, "", "python", 7000)
			line := dialLines(t, server.awaitPort(7000))
			if got := line.ask("one"); got != "python 1 one" {
				t.Fatalf("reply %q", got)
			}
			path := server.write("pod.podd")
			stopped := server.inspect()
			killAt(t, "b", point, func() {
				if r := podctl(t, "restore", "-q", "--host", "b", path); r.code == 0 {
					t.Errorf("the restore succeeds: %s", r.stdout)
				}
			})
			until(t, "the restore is decided", func() error {
				now := server.inspect()
				if runs && (now.Phase != pod.PhaseRunning || now.Host != "b") || !runs && (now.Phase != pod.PhaseStopped || now.Epoch != stopped.Epoch) {
					return fmt.Errorf("the pod is %+v", now)
				}
				return nil
			})
			if !runs {
				mustPodctl(t, "restore", "-q", "--host", "c", path)
			}
			if got := line.ask("two"); got != "python 2 two" {
				t.Errorf("reply %q", got)
			}
		})
	}
}
