//go:build root

package pager

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pagesync"
	"podd/trust"
	"podd/trust/trusttest"
)

// TestMove moves the memory of one process into another that has the same mappings,
// with package pagesync at the source.
func TestMove(t *testing.T) {
	for _, complete := range []bool{true, false} {
		name := "post-copy"
		if complete {
			name = "pre-copy"
		}
		t.Run(name, func(t *testing.T) { testMove(t, complete) })
	}
}

func testMove(t *testing.T, complete bool) {
	seed := newSeed(t)
	o := podOptions{seed: seed, pid: 1, regions: 4, pages: 1500, ops: 3000, threads: 2, forks: 4}
	target := startPod(t, o)
	o.env, o.clone = []string{"POD_FROZEN=1"}, unix.CLONE_NEWPID
	frozen := startPod(t, o)
	pid := frozen.cmd.Process.Pid

	source, err := pagesync.NewSource(pagesync.SourceOptions{Init: pid, Log: testLog(t)})
	must(t, err)
	t.Cleanup(func() { source.Close() })
	options := serveMemory(t, source)
	p := startPager(t, options)
	must(t, source.Connected(bounded(t, time.Minute)))
	_, err = source.Survey(bounded(t, time.Minute))
	must(t, err)
	if complete {
		stats, err := source.Pass(bounded(t, time.Minute))
		must(t, err)
		t.Logf("%+v", stats)
	}
	must(t, unix.Kill(pid, unix.SIGSTOP))
	left, err := source.Freeze(bounded(t, time.Minute))
	must(t, err)
	for _, r := range target.regions {
		found := false
		for _, l := range left {
			found = found || l.Start <= r.Start && r.End <= l.End
		}
		if !found {
			t.Fatalf("%v is not among what is left to podd: %v", r, left)
		}
	}
	finished := make(chan error, 1)
	go func() {
		_, err := source.Finish(bounded(t, time.Minute))
		finished <- err
	}()
	must(t, p.Attach(t.Context(), 1, target.uffd))
	target.uffd.Close()
	must(t, p.Verify(bounded(t, time.Minute), complete))
	must(t, p.Run())
	target.start(t)
	target.finish(t, time.Minute)
	must(t, p.Wait(bounded(t, time.Minute)))
	must(t, <-finished)
	t.Logf("%+v", p.Status())
}

// serveMemory serves the source as podd does.
func serveMemory(t *testing.T, source *pagesync.Source) Options {
	t.Helper()
	s := newTestSource(t, 0) // for its options
	issuer := trusttest.Cluster(t)
	host := trusttest.Member(t, issuer, trust.Identity{Kind: trust.KindHost, Name: "source"}, 0)
	options := s.options(t, "")
	options.StateDir = t.TempDir()
	trusttest.MemberIn(t, trust.Dir(options.StateDir), issuer, trust.Identity{Kind: trust.KindHost, Name: "target"}, 0)
	l, err := tls.Listen("tcp", "127.0.0.1:0", host.ServerTLS())
	must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n"); err != nil {
			return
		}
		if err := source.Serve(conn); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("serving memory: %v", err)
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	options.Addresses = []string{l.Addr().String()}
	return options
}
