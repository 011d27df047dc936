//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
	"podd/procfs"
	"podd/trust"
)

// directoryNode is where etcd runs in these tests, in a process of its own: at a
// host that takes no part in the moves.
const directoryNode = "c"

// etcdCluster is a directory apart from podproxy.
type etcdCluster struct {
	members []*etcdMember
}

type etcdMember struct {
	name                  string
	dir                   string
	client, peer, metrics int // ports
	cmd                   *exec.Cmd
}

// etcdProgram is etcd itself, of the version that is embedded in the daemons.
var etcdProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binDir, "etcd")
	if out, err := exec.Command("go", "build", "-o", path, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building etcd: %w\n%s", err, out)
	}
	return path, nil
})

// directoryApart gives all daemons a new directory of so many members until the
// test's end, and disks that can be made full. There must be no pods.
func directoryApart(t *testing.T, members int) *etcdCluster {
	t.Helper()
	if _, err := etcdProgram(); err != nil {
		t.Fatal(err)
	}
	e := &etcdCluster{}
	for i := range members {
		name := fmt.Sprintf("m%d", i)
		dir := filepath.Join(theLab.Dir, "etcd", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		e.members = append(e.members, &etcdMember{name: name, dir: dir, client: 2379 + 10*i, peer: 2380 + 10*i, metrics: 2381 + 10*i})
	}
	nodes := theLab.Daemons() // the proxy first
	stop := func() {
		for _, node := range slices.Backward(nodes) {
			if err := theLab.Stop(bounded(t), node); err != nil && !errors.Is(err, pod.ErrNotFound) {
				t.Error(err)
			}
		}
	}
	stop()
	t.Cleanup(func() {
		for _, node := range nodes {
			bringUp(t, node)
		}
	})
	for _, node := range []string{"a", "b", lab.Proxy} {
		memoryDisk(t, theLab.StateDir(node), diskSize)
	}
	for _, m := range e.members {
		memoryDisk(t, m.dir, diskSize)
		e.start(t, m)
		t.Cleanup(func() { e.signal(t, m, unix.SIGKILL); m.cmd.Wait() })
	}
	for _, m := range e.members {
		e.awaitHealthy(t, m)
	}
	t.Cleanup(func() {
		stop()
		clear(startFlags)
	})
	var urls []string
	for _, m := range e.members {
		urls = append(urls, e.url("https", m.client))
	}
	for _, node := range nodes {
		startFlags[node] = []string{"--directory", strings.Join(urls, ",")}
		bringUp(t, node)
	}
	return e
}

func (e *etcdCluster) url(scheme string, port int) string {
	return scheme + "://" + net.JoinHostPort(theLab.Address(directoryNode).String(), fmt.Sprint(port))
}

// start starts a member, with what it has on its disk.
func (e *etcdCluster) start(t *testing.T, m *etcdMember) {
	t.Helper()
	program, err := etcdProgram()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, other := range e.members {
		all = append(all, other.name+"="+e.url("http", other.peer))
	}
	// The proxy's certificate says that its holder serves the directory.
	credentials := trust.Dir(theLab.StateDir(lab.Proxy))
	m.cmd = theLab.Command(directoryNode, program, "--name", m.name, "--data-dir", filepath.Join(m.dir, "data"),
		"--listen-client-urls", e.url("https", m.client), "--advertise-client-urls", e.url("https", m.client),
		"--cert-file", filepath.Join(credentials, "certificate.pem"), "--key-file", filepath.Join(credentials, "key.pem"),
		"--client-cert-auth", "--trusted-ca-file", filepath.Join(credentials, "authority.pem"),
		"--client-cert-allowed-hostname", trust.DaemonName, "--tls-min-version", "TLS1.3",
		"--listen-peer-urls", e.url("http", m.peer), "--initial-advertise-peer-urls", e.url("http", m.peer),
		"--initial-cluster", strings.Join(all, ","), "--listen-metrics-urls", fmt.Sprintf("http://127.0.0.1:%d", m.metrics),
		"--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "warn")
	log, err := os.OpenFile(filepath.Join(theLab.Dir, "log", "etcd-"+m.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (e *etcdCluster) signal(t *testing.T, m *etcdMember, s unix.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}

// restart kills a member, if it has not ended, and starts it again.
func (e *etcdCluster) restart(t *testing.T, m *etcdMember) {
	t.Helper()
	e.signal(t, m, unix.SIGKILL)
	m.cmd.Wait() // killed
	e.start(t, m)
}

// ended reports whether a member has ended by itself.
func (m *etcdMember) ended() bool {
	stat, err := procfs.ReadStat(m.cmd.Process.Pid)
	return err != nil || stat.Ended()
}

// ask returns what a member says about itself.
func (e *etcdCluster) ask(m *etcdMember, path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return theLab.Dial(ctx, directoryNode, network, address)
		},
	}}
	reply, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", m.metrics, path))
	if err != nil {
		return "", err
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", reply.Status, text)
	}
	return string(text), err
}

func (e *etcdCluster) awaitHealthy(t *testing.T, m *etcdMember) {
	t.Helper()
	until(t, "etcd serves", func() error {
		_, err := e.ask(m, "/health")
		return err
	})
}

// leader is the member that leads now.
func (e *etcdCluster) leader(t *testing.T) *etcdMember {
	t.Helper()
	var leader *etcdMember
	until(t, "the directory has a leader", func() error {
		for _, m := range e.members {
			text, err := e.ask(m, "/metrics")
			if err == nil && strings.Contains(text, "\netcd_server_is_leader 1\n") {
				leader = m
				return nil
			}
		}
		return errors.New("no member leads")
	})
	return leader
}
