//go:build e2e

package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podd/lab"
)

// sshServer is a pod with an sshd and an ordinary user in it.
type sshServer struct {
	*testPod
	host string
	// options are ssh's and scp's.
	options []string
}

// sshdScript makes user alice, who may log in with the key, and runs sshd.
const sshdScript = `
useradd --create-home --shell /bin/bash --password '*' alice
mkdir -p /run/sshd /home/alice/.ssh
echo '%s' >/home/alice/.ssh/authorized_keys
chown -R alice: /home/alice/.ssh
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/pod_key
exec /usr/sbin/sshd -D -e -f /dev/null -o HostKey=/etc/ssh/pod_key -o Subsystem='sftp /usr/lib/openssh/sftp-server'
`

func newSSH(t *testing.T) *sshServer {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	s := &sshServer{testPod: newShell(t, "", fmt.Sprintf(sshdScript, strings.TrimSpace(string(public))))}
	if s.host, _, err = net.SplitHostPort(s.awaitPort(22)); err != nil {
		t.Fatal(err)
	}
	s.options = []string{
		"-F", "none", "-i", key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new",
		"-o", "UserKnownHostsFile=" + key + ".hosts", "-o", "LogLevel=ERROR",
	}
	return s
}

func (s *sshServer) ssh(args ...string) *exec.Cmd {
	argv := append(append([]string{"ssh"}, s.options...), "alice@"+s.host)
	return theLab.CommandContext(bounded(s.t), lab.Client, append(argv, args...)...)
}

func (s *sshServer) scp(args ...string) *exec.Cmd {
	return theLab.CommandContext(bounded(s.t), lab.Client, append(append([]string{"scp", "-q"}, s.options...), args...)...)
}

// Somebody is logged in, with a program in the foreground and one in the
// background, and goes on typing.
func TestSSHSession(t *testing.T) {
	server := newSSH(t)
	options := server.options
	server.options = append([]string{"-tt"}, options...)
	session := startOnTerminal(t, server.ssh("bash", "--norc"))
	server.options = options

	pid, tty := session.answer("$$"), session.answer("$(tty)")
	if !strings.HasPrefix(tty, "/dev/pts/") {
		t.Fatalf("the session is on %q", tty)
	}
	session.enter("greeting='still here'; sleep 1000 & cd /tmp; stty -echoctl")
	job := session.answer("$!")
	for _, host := range []string{"b", "c"} {
		server.move(host)
		if got := session.answer("$$ $(tty) $greeting $PWD"); got != pid+" "+tty+" still here /tmp" {
			t.Errorf("on host %s the shell says %q", host, got)
		}
	}
	if got := session.answer("$(jobs -p)"); got != job {
		t.Errorf("the background job is %q, was %q", got, job)
	}
	// Keys still make signals: the terminal knows its foreground group.
	session.enter("sleep 2000")
	until(t, "the foreground program runs", func() error {
		if out := podctl(t, "exec", server.name, "--", "pgrep", "-f", "^sleep 2000$"); out.code != 0 {
			return errors.New("not yet")
		}
		return nil
	})
	server.move("a")
	session.keys("\x03")
	if got := session.answer("$?"); got != "130" {
		t.Errorf("after ctrl-c the shell has status %q; want 130", got)
	}
	session.enter("kill %1; exit 42")
	if code := session.wait(); code != 42 {
		t.Errorf("ssh ended with %d; want the shell's 42", code)
	}
	// And the moved sshd takes new connections.
	if r := run(t, server.ssh("id", "-un")); r.stdout != "alice\n" {
		t.Errorf("a new connection: %+v", r)
	}
}

// Two files of 200 MB are under way, one each way.
func TestSCP(t *testing.T) {
	const size = 200 << 20
	// The rate makes each copy last about eight seconds: both are under way
	// while the pod moves, and later it is asserted that they were.
	const kilobits = "200000"
	server := newSSH(t)
	dir := t.TempDir()
	up, down := filepath.Join(dir, "up"), filepath.Join(dir, "down")
	sum := writeRandom(t, up, size)
	server.shell(fmt.Sprintf("head -c %d /dev/urandom >/home/alice/file", size))

	remote := "alice@" + server.host + ":"
	copies := []*exec.Cmd{
		server.scp("-l", kilobits, up, remote+"uploaded"),
		server.scp("-l", kilobits, remote+"file", down),
	}
	ended := make(chan error, len(copies))
	for _, c := range copies {
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- c.Wait() }()
	}
	running := len(copies)
	t.Cleanup(func() {
		for _, c := range copies {
			_ = c.Process.Kill() // it may have ended
		}
		for range running {
			<-ended
		}
	})
	until(t, "a part of both files has arrived", func() error {
		info, err := os.Stat(down)
		if err == nil && info.Size() < size/20 {
			err = fmt.Errorf("%d bytes have come down", info.Size())
		}
		if err == nil {
			r := podctl(t, "exec", server.name, "--", "test", "/home/alice/uploaded", "-nt", "/home/alice/file")
			if r.code != 0 {
				err = errors.New("nothing has gone up")
			}
		}
		return err
	})
	server.move("b")
	select {
	case err := <-ended:
		t.Fatalf("a copy ended before the move did (%v): nothing was tested", err)
	default:
	}
	for ; running > 0; running-- {
		if err := <-ended; err != nil {
			t.Errorf("scp: %v", err)
		}
	}
	if got := strings.Fields(server.exec("sha256sum", "/home/alice/uploaded"))[0]; got != sum {
		t.Errorf("the uploaded file has the digest %s; want %s", got, sum)
	}
	want := strings.Fields(server.exec("sha256sum", "/home/alice/file"))[0]
	if got := fileSum(t, down); got != want {
		t.Errorf("the downloaded file has the digest %s; want %s", got, want)
	}
}

// writeRandom writes a file and returns its SHA-256.
func writeRandom(t *testing.T, path string, size int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, hash), rand.Reader, size)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(hash.Sum(nil))
}
