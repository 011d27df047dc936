package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"podd/pod"
)

const (
	// readyTimeout is how long a daemon may take until it answers, unless the
	// context says less. An embedded directory starts in about a second.
	readyTimeout = 60 * time.Second
	// stopTimeout is how long Restart waits for a daemon to end.
	stopTimeout = 30 * time.Second
	// readyPoll is the pause between two questions to a daemon.
	readyPoll = 20 * time.Millisecond
	// logTail is how many lines of a daemon's log an error quotes.
	logTail = 15
)

// Start starts a node's daemon and returns when it answers on its API, or with
// the end of its log when it ends before or does not answer in time. extra
// arguments are added to its command line. The error wraps pod.ErrExists when
// the daemon runs.
func (l *Lab) Start(ctx context.Context, node string, extra ...string) error {
	if err := l.checkDaemon(node); err != nil {
		return err
	}
	running, err := l.daemon(node)
	if err != nil {
		return err
	}
	if running.alive() {
		return fmt.Errorf("%w: the daemon of node %s runs already, as process %d", pod.ErrExists, node, running.PID)
	}
	if err := l.start(ctx, node, extra); err != nil {
		return fmt.Errorf("starting the daemon of node %s: %w", node, err)
	}
	return nil
}

func (l *Lab) start(ctx context.Context, node string, extra []string) (err error) {
	for _, dir := range []string{l.StateDir(node), l.RunDir(node)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	admission, done, err := l.admission(ctx, node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	started, exited, err := l.spawn(node, append(admission, extra...))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := l.awaitReady(ctx, node, exited); err != nil {
		err = fmt.Errorf("%w\nthe end of %s:\n%s", err, l.LogPath(node), l.LogTail(node, logTail))
		return errors.Join(err, started.signal(unix.SIGKILL))
	}
	l.log.Info("a daemon is ready", "host", node, "pid", started.PID)
	return nil
}

// arguments is the command line of a node's daemon.
func (l *Lab) arguments(node string) []string {
	common := []string{
		"--name", node, "--address", l.Address(node).String(), "--listen", l.API(node).String(),
		"--state-dir", l.StateDir(node), "--run-dir", l.RunDir(node), "--log-level", l.LogLevel,
	}
	if node == Proxy {
		return append(append([]string{filepath.Join(l.BinDir, "podproxy")}, common...),
			"--directory", "embedded", "--public-prefix", PublicPrefix.String(), "--virtual-prefix", VirtualPrefix.String(),
			"--zone", Zone, "--dns-listen", l.Address(Proxy).String()+":53")
	}
	return append(append([]string{filepath.Join(l.BinDir, "podd")}, common...),
		"--cgroup-parent", l.CgroupParent(node), "--init-path", filepath.Join(l.BinDir, "podinit"))
}

// spawn starts the daemon in a session of its own, so that it outlives this
// process and its terminal. exited is closed when it ends.
func (l *Lab) spawn(node string, extra []string) (p process, exited <-chan struct{}, err error) {
	log, err := os.OpenFile(l.LogPath(node), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return p, nil, err
	}
	defer log.Close()
	cmd := l.Command(node, append(l.arguments(node), extra...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return p, nil, err
	}
	done := make(chan struct{})
	l.children.Go(func() {
		defer close(done)
		// How it ended is in its log; whoever waits for readiness quotes that.
		_ = cmd.Wait()
	})
	p = process{PID: cmd.Process.Pid}
	// One that has ended already is found out by waiting for it.
	if p.StartTime, err = startTime(p.PID); err == nil || errors.Is(err, errGone) {
		err = l.noteDaemon(node, p)
	}
	if err != nil {
		return p, nil, errors.Join(err, cmd.Process.Kill())
	}
	return p, done, nil
}

// awaitReady asks the daemon until it answers.
func (l *Lab) awaitReady(ctx context.Context, node string, exited <-chan struct{}) error {
	client := l.httpClient(node)
	defer client.CloseIdleConnections()
	for {
		err := healthy(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(readyPoll):
		}
	}
}

// daemonURL is what requests by a socket are addressed to; it means nothing.
const daemonURL = "http://daemon"

// httpClient speaks HTTP to a node's daemon by its socket.
func (l *Lab) httpClient(node string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.Socket(node))
		},
	}}
}

func healthy(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, daemonURL+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it says %s", response.Status)
	}
	return nil
}

// Kill sends a signal to a node's daemon and does not wait. The error wraps
// pod.ErrNotFound when the daemon doesn't run.
func (l *Lab) Kill(node string, signal unix.Signal) error {
	if err := l.checkDaemon(node); err != nil {
		return err
	}
	p, err := l.daemon(node)
	if err != nil {
		return err
	}
	if !p.alive() {
		return fmt.Errorf("%w: the daemon of node %s does not run", pod.ErrNotFound, node)
	}
	return p.signal(signal)
}

// Wait returns when a node's daemon does not run, or ctx ends.
func (l *Lab) Wait(ctx context.Context, node string) error {
	if err := l.checkDaemon(node); err != nil {
		return err
	}
	p, err := l.daemon(node)
	if err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("waiting for the daemon of node %s: %w", node, err)
	}
	return nil
}

// Stop asks a node's daemon to end and waits until it has.
func (l *Lab) Stop(ctx context.Context, node string) error {
	if err := l.Kill(node, unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return l.Wait(ctx, node)
}

// Restart stops a node's daemon, if it runs, and starts it.
func (l *Lab) Restart(ctx context.Context, node string) error {
	if err := l.Stop(ctx, node); err != nil && !errors.Is(err, pod.ErrNotFound) {
		return err
	}
	return l.Start(ctx, node)
}

// PID returns the process of a node's daemon, 0 when it doesn't run.
func (l *Lab) PID(node string) (int, error) {
	if err := l.checkDaemon(node); err != nil {
		return 0, err
	}
	p, err := l.daemon(node)
	if err != nil || !p.alive() {
		return 0, err
	}
	return p.PID, nil
}

// LogTail returns the last lines of a node's log, or why it can't be read.
func (l *Lab) LogTail(node string, lines int) string {
	f, err := os.Open(l.LogPath(node))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 64 << 10
	if st, err := f.Stat(); err == nil && st.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func daemonPath(node string) string { return filepath.Join(place.run, node+".pid") }

func (l *Lab) noteDaemon(node string, p process) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return renameio.WriteFile(daemonPath(node), data, 0o644)
}

// daemon returns the zero process when none was ever started.
func (l *Lab) daemon(node string) (process, error) {
	var p process
	data, err := os.ReadFile(daemonPath(node))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return p, fmt.Errorf("looking for the daemon of node %s: %w", node, err)
	}
	return p, nil
}
