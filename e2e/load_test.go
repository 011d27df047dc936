//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"podd/lab"
	"podd/pod"
)

// checkingClient is what the clients of package workload have in common.
type checkingClient interface {
	Run(context.Context) error
	Stop()
	Started() <-chan struct{}
	Lap() time.Duration
}

// load is a checking client that runs.
type load struct {
	checkingClient
	t     *testing.T
	ended chan struct{}
	err   error
}

// startLoad runs a client and returns when the server has answered it.
func startLoad(t *testing.T, c checkingClient) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{checkingClient: c, t: t, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		l.err = c.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-l.ended })
	select {
	case <-c.Started():
	case <-l.ended:
		t.Fatalf("the client ended before anything was tested: %v", l.err)
	case <-time.After(replyTimeout):
		t.Fatal("the server does not answer the client")
	}
	return l
}

// finish lets the client come to its end; all it saw must have been right.
func (l *load) finish() {
	l.t.Helper()
	l.Stop()
	l.wait()
}

// wait waits until the client ends by itself.
func (l *load) wait() {
	l.t.Helper()
	select {
	case <-l.ended:
		if l.err != nil {
			l.t.Error(l.err)
		}
	case <-time.After(commandTimeout):
		l.t.Fatal("the client does not come to an end")
	}
}

// requireSilence fails the test if the client has not heard of its server for
// longer than the pod was frozen and limit.
func (l *load) requireSilence(move *receipt, limit time.Duration) {
	l.t.Helper()
	silence := l.Lap()
	l.t.Logf("the longest silence was %v", silence.Round(time.Millisecond))
	if silence > move.freeze()+limit {
		l.t.Errorf("the client heard nothing for %v, with a freeze of %v; want no more than %v longer", silence, move.freeze(), limit)
	}
}

// loadgenDir has loadgen, built when it is first wanted.
var loadgenDir = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(binDir, "pod")
	cmd := exec.Command("go", "build", "-o", dir+"/", "podd/e2e/workload/cmd/loadgen")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building loadgen: %w\n%s", err, out)
	}
	return dir, nil
})

// newLoadgen makes a pod on host a that runs loadgen from a shared volume.
func newLoadgen(t *testing.T, suffix string, args ...string) *testPod {
	t.Helper()
	dir, err := loadgenDir()
	if err != nil {
		t.Fatal(err)
	}
	return newPod(t, suffix, append([]string{"-v", dir + ":/opt/loadgen:share,ro", "--", "/opt/loadgen/loadgen"}, args...)...)
}

// finish ends a loadgen that is a client; all it saw must have been right.
func (p *testPod) finish() {
	p.t.Helper()
	mustPodctl(p.t, "kill", "--signal", "TERM", p.name)
	until(p.t, "the pod's client ends", func() error {
		v := p.inspect()
		if v.Phase == pod.PhaseStopped && v.ExitCode != nil {
			if *v.ExitCode != 0 {
				p.t.Errorf("the client in pod %s ended with %d:\n%s", p.name, *v.ExitCode, mustPodctl(p.t, "logs", p.name))
			}
			return nil
		}
		return fmt.Errorf("it is %s", v.Phase)
	})
	p.t.Logf("pod %s: %s", p.name, mustPodctl(p.t, "logs", "--tail", "1", p.name))
}

// awaitStarted waits until a loadgen that is a client hears of its server.
func (p *testPod) awaitStarted() {
	p.t.Helper()
	until(p.t, "the client in pod "+p.name+" is served", func() error {
		if out := mustPodctl(p.t, "logs", p.name); out == "" {
			return fmt.Errorf("it has written %q", out)
		}
		return nil
	})
}

// fromClient connects from the client's network.
func fromClient(ctx context.Context, network, address string) (net.Conn, error) {
	return theLab.Dial(ctx, lab.Client, network, address)
}
