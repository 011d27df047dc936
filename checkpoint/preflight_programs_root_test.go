//go:build root

package checkpoint

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/e2e/workload"
	"podd/pod"
)

// session is a pod that sees the programs of this machine.
type session struct {
	base string
	pid  int
}

// startSession runs a shell script in a pod, until the test ends.
func startSession(t *testing.T, script string) *session {
	t.Helper()
	s := &session{base: t.TempDir()}
	for _, dir := range []string{"upper", "work", "root", "dev", "tmp", "run"} {
		must(t, os.Mkdir(filepath.Join(s.base, dir), 0o755))
	}
	run(t, "cp", programPath, filepath.Join(s.base, "tmp/program"))
	cmd := exec.Command(programPath, "session", s.base, script)
	cmd.Env = []string{"GODEBUG=containermaxprocs=0"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	must(t, cmd.Start())
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("the pod's output: %s%s", s.output(), stderr.String())
		}
	})
	s.pid = cmd.Process.Pid
	return s
}

func (s *session) output() string {
	b, _ := os.ReadFile(filepath.Join(s.base, "tmp/output"))
	return string(b)
}

// prints waits until the pod's output has a line that begins with text.
func (s *session) prints(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the pod prints "+text+"; it has printed "+s.output(), func() bool {
		return strings.Contains("\n"+s.output(), "\n"+text)
	})
}

func (s *session) preflight(t *testing.T) []pod.Blocker {
	t.Helper()
	blockers, err := Preflight(t.Context(), s.pid, PreflightOptions{
		ExternalMounts: map[string]string{"/dev": "dev", "/tmp": "tmp", "/run": "run"},
	})
	must(t, err)
	return blockers
}

// kitchenSink builds it where every session sees it.
func kitchenSink(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "poddtest-checkpoint-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "kitchensink")
	must(t, workload.BuildKitchenSink(t.Context(), path))
	return path
}

func listStates(t *testing.T, sink, list string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), sink, list).Output()
	must(t, err)
	return strings.Fields(string(out))
}

// TestPreflightKitchenSink has everything in the pod that CRIU is known to
// fail with or to lose, one at a time.
func TestPreflightKitchenSink(t *testing.T) {
	sink := kitchenSink(t)
	problems := map[string]string{
		"pipe_packets":            "packet mode",
		"unix_queued_credentials": "asks for its sender",
		"unix_backlog_with_data":  "unix connection that is not accepted yet",
		"tcp_backlog":             "1 TCP connections",
		"mptcp":                   "multipath TCP",
		"posix_queue":             "POSIX message queue /kitchensink-",
		"ptrace":                  "is traced",
		"netlink_unread":          "netlink",
		"io_uring":                "uses io_uring",
		"userfaultfd":             "uses userfaultfd",
		"perf_event":              "uses perf_event",
		"bpf_program":             "uses bpf-prog",
		"memfd_secret":            "secret memory",
		"user_namespace":          "user namespace of its own",
		"eventfd_semaphore":       "EFD_SEMAPHORE",
		"inotify_unread":          "file events (inotify)",
	}
	// No one can see these from outside; see docs/limits.md.
	invisible := []string{"semaphore_undo", "unix_peer_name"}
	for _, state := range append(listStates(t, sink, "list-unmovable"), listStates(t, sink, "list-lost")...) {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			s := startSession(t, "ip link set lo up; exec "+sink+" only "+state)
			s.prints(t, "ready")
			blockers := s.preflight(t)
			for _, b := range blockers {
				t.Log(b)
			}
			if slices.Contains(invisible, state) {
				if len(blockers) > 0 {
					t.Error("it is seen: the documentation says it is not")
				}
				return
			}
			problem, ok := problems[state]
			if !ok {
				t.Fatal("the test does not know this state")
			}
			about := func(b pod.Blocker) bool {
				aProcess := state == "ptrace" || state == "user_namespace"
				return strings.Contains(b.Problem, problem) && b.Program == "kitchensink" && b.PID > 1 && b.Remedy != "" && (b.Descriptor >= 0) != aProcess
			}
			if !slices.ContainsFunc(blockers, about) {
				t.Errorf("no blocker has %q and says whose it is", problem)
			}
		})
	}
}

// TestPreflightNoFalseAlarm has programs in the pod that can be moved.
func TestPreflightNoFalseAlarm(t *testing.T) {
	sink := kitchenSink(t)
	for name, script := range map[string]string{
		"kitchen sink": sink + " run",
		"many forks":   forkScript,
		"redis":        redisScript,
		"nginx":        nginxScript,
		"sshd":         sshScript,
		"python":       pythonScript,
		"postgresql":   postgresScript,
		"desktop":      desktopScript,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSession(t, "ip link set lo up\n"+script)
			s.prints(t, "ready")
			// Not only when nothing has happened for a while.
			for range 5 {
				for _, b := range s.preflight(t) {
					t.Error(b)
				}
				<-time.After(10 * time.Millisecond)
			}
		})
	}
}

// Processes and pipes come and go all the time.
const forkScript = `
echo ready
while :; do echo line | cat | cat >/dev/null; done`

const redisScript = `
redis-server --dir /tmp --appendonly yes --io-threads 2 --bind 127.0.0.1 &
until redis-cli ping >/dev/null 2>&1; do sleep 0.05; done
redis-cli subscribe channel >/dev/null &
redis-benchmark -q -n 100000 -c 20 -t set,get >/dev/null &
echo ready
wait`

const nginxScript = `
mkdir -p /tmp/nginx
cat >/tmp/nginx/conf <<-'EOF'
	user nobody nogroup;
	worker_processes 2;
	pid /tmp/nginx/pid;
	daemon off;
	events {}
	http {
		server { listen 127.0.0.1:8080; root /etc; }
	}
EOF
nginx -c /tmp/nginx/conf -e stderr &
until curl -fsS http://127.0.0.1:8080/hostname >/dev/null 2>&1; do sleep 0.05; done
echo ready
wait`

// A session with a terminal, and one that runs something.
const sshScript = `
mkdir -p /run/sshd /tmp/ssh
ssh-keygen -q -t ed25519 -N '' -f /tmp/ssh/host
ssh-keygen -q -t ed25519 -N '' -f /tmp/ssh/user
/usr/sbin/sshd -D -e -f /dev/null -o Port=2222 -o HostKey=/tmp/ssh/host \
	-o AuthorizedKeysFile=/tmp/ssh/user.pub -o StrictModes=no -o PermitRootLogin=yes &
remote() { ssh -p 2222 -i /tmp/ssh/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"; }
until remote 127.0.0.1 true 2>/dev/null; do sleep 0.05; done
remote -tt 127.0.0.1 'touch /tmp/one; cat' </dev/ptmx >/dev/null &
remote 127.0.0.1 'touch /tmp/two; while sleep 0.01; do echo line; done' >/dev/null &
until test -e /tmp/one && test -e /tmp/two; do sleep 0.05; done
echo ready
wait`

const pythonScript = `
exec python3 -uc '
import asyncio, multiprocessing, threading, time
async def echo(r, w):
    while data := await r.read(100):
        w.write(data)
async def main():
    await asyncio.start_server(echo, "127.0.0.1", 9000)
    await asyncio.start_unix_server(echo, "/tmp/echo")
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    child = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    queue, lock = multiprocessing.Queue(), multiprocessing.Semaphore(2)
    r, w = await asyncio.open_unix_connection("/tmp/echo")
    print("ready")
    while True:
        w.write(b"x" * 10)
        await r.readexactly(10)
        await asyncio.sleep(0.001)
asyncio.run(main())
'`

const postgresScript = `
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
mkdir /tmp/pg
chown postgres /tmp/pg
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
as initdb -D /tmp/pg/data --no-sync -A trust >/dev/null
as postgres -D /tmp/pg/data -k /tmp/pg -h 127.0.0.1 &
until as psql -h /tmp/pg -c 'create table t (x int)' >/dev/null 2>&1; do sleep 0.05; done
as psql -h /tmp/pg -c 'select pg_sleep(3600)' &
as psql -h 127.0.0.1 -c 'select pg_sleep(3600)' &
echo ready
wait`

// It runs as an ordinary user does, with a session bus.
const desktopScript = `
install -d -m 1777 /tmp/.X11-unix
export DISPLAY=:1 HOME=/tmp/home
mkdir -p $HOME
dbus-run-session -- sh -ec '
	Xvnc $DISPLAY -SecurityTypes None -localhost -geometry 800x600 &
	until test -S /tmp/.X11-unix/X1; do sleep 0.05; done
	openbox &
	xclock -update 1 &
	xterm -e sh -c "touch /tmp/shown; exec cat" &
	dbus-monitor --session >/dev/null &
	until test -e /tmp/shown; do sleep 0.05; done
	echo ready
	wait
'`
