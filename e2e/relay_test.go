//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"podd/daemon"
	"podd/directory"
	"podd/fault/recovery"
	"podd/lab"
	"podd/pod"
	"podd/trust"
)

// throughProxy are the flags of a move between hosts that can't reach each other.
var throughProxy = []string{"--strategy", string(pod.StrategyCheckpointServer)}

// Hosts a and b can't reach each other, only the proxy, which carries a move
// between them there and back. It sees nothing of it, and lets nobody else in.
func TestCheckpointServer(t *testing.T) {
	s := newScene(t)
	s.flags = throughProxy
	marker := make([]byte, 32)
	if _, err := rand.Read(marker); err != nil {
		t.Fatal(err)
	}
	hold := podctlCommand(bounded(t), "a", "exec", "-i", s.pod.name, "--", "sh", "-euc",
		`read m; echo "$m" | setsid python3 -c "$0" >/dev/null 2>&1 & until test -e /var/tmp/ready; do sleep 0.02; done`, markedProgram)
	hold.Stdin = strings.NewReader(hex.EncodeToString(marker) + "\n")
	if r := run(t, hold); r.code != 0 {
		t.Fatalf("starting the program: exit code %d\n%s", r.code, r.stderr)
	}
	heal := part(t, "a", "b")

	for _, args := range [][]string{{}, {"--dry-run"}, {"--strategy", "stop-copy"}} {
		r := podctl(t, append(append([]string{"move"}, args...), s.pod.name, "b")...)
		if r.code == 0 || !strings.Contains(r.stderr, "--strategy checkpoint-server") {
			t.Errorf("move %s: exit code %d, %q; want that another strategy is recommended", strings.Join(args, " "), r.code, r.stderr)
		}
		t.Logf("a move that can't be made says: %s", strings.TrimSpace(r.stderr))
	}
	mustPodctl(t, append(append([]string{"move", "--dry-run"}, throughProxy...), s.pod.name, "b")...)

	wire := captureRouter(t, marker)
	// Everything has crossed then, and what the proxy carried last is in its
	// memory still.
	s.begin("source:restore", "stop")
	requireSealed(t, marker)
	s.requireThirdRefused()
	resume(t, "a")
	s.await(0)
	if s.ended.code != 0 {
		t.Fatalf("the move: exit code %d: %s", s.ended.code, s.ended.stderr)
	}
	requireFlow(t, s.old, faultRate)
	// Host a can't be asked about a pod on b.
	after := s.fromC("inspect", "-o", "json")
	if after.Host != "b" {
		t.Errorf("the pod is on host %s", after.Host)
	}
	s.said.requireOrder(t, s.before, after)
	requireClean(t, s.pod.name, after)
	back := run(t, podctlCommand(bounded(t), "c", append(append([]string{"move"}, throughProxy...), s.pod.name, "a")...))
	if back.code != 0 {
		t.Fatalf("the move back: exit code %d: %s", back.code, back.stderr)
	}
	t.Logf("the moves said:\n%s\n%s", s.ended.stdout, back.stdout)
	requireFlow(t, s.old, faultRate)
	requireClean(t, s.pod.name, s.pod.inspect())
	wire.stop(t)
	if found := wire.found.Load(); found > 0 || wire.bytes.Load() < 4*markers*noise {
		t.Errorf("the pod's secret is in %d packets; %d bytes were looked at", found, wire.bytes.Load())
	}
	if got := s.pod.exec("sh", "-c", "wc -c < /var/tmp/marked; pgrep -c python3"); got != fmt.Sprintf("%d\n1", markers*(noise+len(marker))) {
		t.Errorf("after the moves: %q", got)
	}
	if got := metric(t, "podproxy_relay_bytes_total"); got < 4*markers*noise {
		t.Errorf("the proxy has carried %v bytes", got)
	}
	heal()
	s.connection.finish()
	t.Logf("the longest silence was %v", s.old.Result().LongestSilence.Round(time.Millisecond))
}

// fromC is what podctl says of the pod by way of host c, which reaches everybody.
func (s *scene) fromC(args ...string) podView {
	s.t.Helper()
	r := run(s.t, podctlCommand(bounded(s.t), "c", append(args, s.pod.name)...))
	if r.code != 0 {
		s.t.Fatalf("podctl %s: exit code %d: %s", strings.Join(args, " "), r.code, r.stderr)
	}
	var v podView
	parseJSON(s.t, r.stdout, &v)
	return v
}

// metric reads one of podproxy's counters or gauges.
func metric(t *testing.T, name string) float64 {
	t.Helper()
	status, body, err := fetch(tlsClient(lab.Client, anonymous()), theLab.API(lab.Proxy), "/metrics")
	if err != nil || status != 200 {
		t.Fatalf("asking podproxy for its metrics: %d, %v", status, err)
	}
	var value float64
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("podproxy has no metric %s", name)
	return 0
}

// requireSealed fails the test if a pod's secret is in podproxy's memory. That it
// would be found is shown by the processes of the pod.
func requireSealed(t *testing.T, secret []byte) {
	t.Helper()
	pid, err := theLab.PID(lab.Proxy)
	if err != nil {
		t.Fatal(err)
	}
	if n, size := countInMemory(t, pid, secret); n > 0 || size < 1<<20 {
		t.Errorf("the pod's secret is %d times in the %d bytes of podproxy's memory", n, size)
	}
	cmdlines, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range cmdlines {
		cmdline, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if err != nil || !bytes.Contains(cmdline, []byte("/var/tmp/marked")) || !bytes.HasPrefix(cmdline, []byte("python3")) {
			continue
		}
		var own int
		if _, err := fmt.Sscan(entry.Name(), &own); err != nil {
			t.Fatal(err)
		}
		if n, _ := countInMemory(t, own, secret); n >= markers {
			return
		}
	}
	t.Error("the secret was not found in the pod's own memory: the test proves nothing")
}

// countInMemory looks for a secret in what a process may write to.
func countInMemory(t *testing.T, pid int, secret []byte) (found int, size int64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	const chunk = 1 << 20
	buffer := make([]byte, chunk)
	for line := range strings.Lines(string(maps)) {
		var start, end int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &mode); err != nil || !strings.HasPrefix(mode, "rw") || strings.HasPrefix(line, "ffff") {
			continue
		}
		for at := start; at < end; at += chunk {
			n, err := memory.ReadAt(buffer[:min(chunk, end-at)], at)
			if err != nil && n == 0 {
				break // not to be read, as memory of a device
			}
			found += bytes.Count(buffer[:n], secret)
			size += int64(n)
		}
	}
	return found, size
}

// requireThirdRefused has host c try to get into the move that is under way, by
// every request that it could write: it has a host's certificate, so it may write
// to the directory.
func (s *scene) requireThirdRefused() {
	t := s.t
	t.Helper()
	store := openStore(t, "c")
	fromC := func(ctx context.Context, address string) (net.Conn, error) {
		return theLab.Dial(ctx, "c", "tcp", address)
	}
	ctx := bounded(t)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{directoryURL()}, TLS: store.ClientTLS(trust.DirectoryName), Logger: zap.NewNop(), Context: ctx,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(fromC)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var move string
	response, err := client.Get(ctx, "/podd/moves/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range response.Kvs {
		var m pod.Move
		if err := json.Unmarshal(kv.Value, &m); err == nil && m.Pod == s.pod.name && m.State == pod.MoveRunning {
			move = m.ID
		}
	}
	if move == "" {
		t.Fatal("no move is under way")
	}
	peers := daemon.NewPeers(store, daemon.NewRevocations(slog.New(slog.DiscardHandler)), func(context.Context, trust.Kind, string) (netip.AddrPort, error) {
		return netip.AddrPort{}, pod.ErrNotFound
	}).Through(func(ctx context.Context, _ trust.Kind, name string) (net.Conn, string, error) {
		conn, err := fromC(ctx, theLab.API(lab.Proxy).String())
		return conn, name, err
	}, requestTimeout)
	for i, c := range []struct {
		request directory.Relay
		reason  string
	}{
		{directory.Relay{From: "a", To: "b", Move: move}, "not about host c"},
		{directory.Relay{From: "c", To: "b", Move: move}, "goes from host a to b"},
		{directory.Relay{From: "a", To: "c", Move: move}, "goes from host a to b"},
	} {
		c.request.ID, c.request.Proxy = fmt.Sprint("third", i), lab.Proxy
		data, err := json.Marshal(c.request)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Put(ctx, "/podd/relays/"+c.request.ID, string(data)); err != nil {
			t.Fatal(err)
		}
		if conn, err := peers.JoinRelay(ctx, lab.Proxy, c.request.ID); err == nil {
			conn.Close()
			t.Errorf("host c was let in by the request %+v", c.request)
		} else if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("host c with the request %+v: %v; want %q", c.request, err, c.reason)
		}
		if _, err := client.Delete(ctx, "/podd/relays/"+c.request.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// What carries a move fails in the middle: podproxy is killed, or loses one of the
// hosts. The pod goes on where it was, and nothing is left. The directory is not on
// podproxy's machine.
func TestRelayFails(t *testing.T) {
	directoryApart(t, 1)
	kill := func(t *testing.T) (heal func()) {
		if err := errors.Join(theLab.Kill(lab.Proxy, unix.SIGKILL), theLab.Wait(bounded(t), lab.Proxy)); err != nil {
			t.Fatal(err)
		}
		return func() { bringUp(t, lab.Proxy) }
	}
	cut := func(node string) func(t *testing.T) (heal func()) {
		return func(t *testing.T) func() { return part(t, node, lab.Proxy) }
	}
	for _, c := range []struct {
		name  string
		fails func(t *testing.T) (heal func())
		at    pod.Stage
	}{
		{"killed", kill, pod.StagePresync}, {"killed", kill, pod.StageDump}, {"killed", kill, pod.StageRestore},
		{"source lost", cut("a"), pod.StageDump}, {"target lost", cut("b"), pod.StageDump},
	} {
		t.Run(c.name+" at "+string(c.at), func(t *testing.T) {
			s := newScene(t)
			s.flags = throughProxy
			heal := part(t, "a", "b")
			s.begin("source:"+string(c.at), "stop")
			mend := c.fails(t)
			resume(t, "a")
			s.await(0)
			mend()
			heal()
			s.requireTold(s.requireOutcome(recovery.Stays).Host)
		})
	}
}
