//go:build root

package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/directory"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
)

// asPodproxy in the environment makes the test's own program be podproxy: a
// daemon has to be a process whose threads are all in the proxy's namespace.
const asPodproxy = "PODDTEST_PODPROXY"

func TestMain(m *testing.M) {
	if os.Getenv(asPodproxy) == "" {
		os.Exit(m.Run())
	}
	var config Config
	err := json.Unmarshal([]byte(os.Getenv(asPodproxy)), &config)
	if err == nil && len(os.Args) > 1 {
		err = Cleanup(config)
	} else if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		err = Run(ctx, config)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// site is a topology with podproxy, a directory client and a vnet per host.
type site struct {
	*vnettest.Topology
	t        *testing.T
	config   Config
	proxy    *exec.Cmd
	issuer   *trust.Store // the proxy's credentials
	dir      *directory.Directory
	networks []*vnet.Network
	hosts    []*http.Client
}

func newSite(t *testing.T, hosts int) *site {
	t.Helper()
	s := &site{Topology: vnettest.New(t, hosts), t: t, config: DefaultConfig()}
	s.config.Name, s.config.Address = "proxy", s.Proxy.Address.String()
	s.config.StateDir, s.config.RunDir = t.TempDir(), t.TempDir()
	s.issuer = trusttest.InitIn(t, trust.Dir(s.config.StateDir))
	s.start()
	t.Cleanup(func() { s.stop(unix.SIGKILL) })
	d, err := directory.Open(t.Context(), directory.Options{
		Endpoints: []string{"https://" + s.relay(netip.AddrPortFrom(s.Proxy.Address, directory.DefaultPort))},
		TLS:       s.issuer.DirectoryTLS(), Log: slog.New(slog.DiscardHandler), Timeout: vnettest.Timeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.dir = d
	t.Cleanup(func() { _ = d.Close() })
	s.ready()
	for i, host := range s.Hosts {
		s.join(i, host)
	}
	return s
}

// client calls podproxy with somebody's certificate.
func (s *site) client(credentials *trust.Store) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   credentials.ClientTLS(trust.ServerName(trust.KindProxy, s.config.Name)),
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return vnettest.TryDial(s.Proxy.Path, address, vnettest.Timeout)
		},
	}}
}

// join makes a node a host: its end of the labelled network, and its record.
func (s *site) join(i int, host vnettest.Node) {
	s.t.Helper()
	var n *vnet.Network
	host.Do(s.t, func() (err error) {
		n, err = vnet.New(vnet.Config{Physical: host.Address, Proxy: s.Proxy.Address}, slog.New(slog.DiscardHandler))
		return err
	})
	s.t.Cleanup(func() { _ = n.Close() })
	if err := n.EnsureAnchor(); err != nil {
		s.t.Fatal(err)
	}
	s.networks = append(s.networks, n)
	s.hosts = append(s.hosts, s.client(trusttest.Member(s.t, s.issuer, trust.Identity{Kind: trust.KindHost, Name: host.Name}, 0)))
	registration, err := s.dir.RegisterHost(s.t.Context(), pod.Host{Name: host.Name, Physical: host.Address})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(registration.Abandon)
}

// command is this program as podproxy, to be run in the proxy's namespace.
func (s *site) command(config Config, args ...string) *exec.Cmd {
	s.t.Helper()
	encoded, err := json.Marshal(config)
	if err != nil {
		s.t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), asPodproxy+"="+string(encoded))
	return c
}

func (s *site) start() {
	s.t.Helper()
	s.proxy = s.command(s.config)
	s.proxy.Stdout, s.proxy.Stderr = s.t.Output(), s.t.Output()
	// A new process is in the namespace of the thread that makes it.
	s.Proxy.Do(s.t, s.proxy.Start)
}

// stop ends podproxy and waits for it; a second time it does nothing.
func (s *site) stop(signal unix.Signal) {
	s.t.Helper()
	if s.proxy == nil {
		return
	}
	_ = s.proxy.Process.Signal(signal)
	err := s.proxy.Wait()
	s.proxy = nil
	if signal == unix.SIGTERM && err != nil {
		s.t.Errorf("podproxy ended with %v", err)
	}
}

func (s *site) ready() {
	s.t.Helper()
	vnettest.Eventually(s.t, "podproxy is ready", func() bool {
		proxies, err := s.dir.Proxies(s.t.Context())
		return err == nil && len(proxies) == 1 && proxies[0].Alive && strings.HasPrefix(s.fetch("/healthz"), "ok")
	})
}

// fetch gets a page of podproxy's, "" if it can't. It shows no certificate.
func (s *site) fetch(path string) string {
	client := s.client(s.issuer)
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = nil
	resp, err := client.Get(fmt.Sprintf("https://%s:%d%s", s.Proxy.Address, DefaultPort, path))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(body)
}

// relay brings a port in the proxy's namespace to loopback in ours.
func (s *site) relay(to netip.AddrPort) string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	s.t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wait.Wait()
	})
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := vnettest.TryDial(s.Proxy.Path, to.String(), vnettest.Timeout)
			if err != nil {
				_ = in.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				wait.Go(func() {
					defer stop()
					_, _ = io.Copy(pair[0], pair[1])
					_, _ = pair[0].Close(), pair[1].Close()
				})
			}
		}
	})
	return l.Addr().String()
}

// testPod is a network namespace that stands for a pod.
type testPod struct {
	name string
	path string
	host int
	*pod.Pod
}

func (p *testPod) public() string { return p.Binding.Public.String() }

// run makes a pod as podd does: record, namespace, virtual NIC, phase.
func (s *site) run(name string, host int) *testPod {
	s.t.Helper()
	record, err := s.dir.CreatePod(s.t.Context(), pod.Spec{Name: name, Command: []string{"true"}}, s.Hosts[host].Name)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &testPod{name: name, path: filepath.Join(s.t.TempDir(), name), host: host, Pod: record}
	n := s.networks[host]
	s.t.Cleanup(func() {
		if err := n.DeleteNamespace(p.path); err != nil {
			s.t.Error(err)
		}
	})
	if err := errors.Join(n.CreateNamespace(p.path), n.Attach(p.path, record.Binding, vnet.AttachOptions{})); err != nil {
		s.t.Fatal(err)
	}
	if err := s.dir.UpdatePod(s.t.Context(), name, func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// connect waits until the proxy has noticed the pod, then connects to it.
func (s *site) connect(from string, p *testPod, address, greeting string) *net.TCPConn {
	s.t.Helper()
	vnettest.Eventually(s.t, "pod "+p.name+" can be reached", func() bool {
		c, err := vnettest.TryDial(from, address, 200*time.Millisecond)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	c := vnettest.Dial(s.t, from, address)
	vnettest.ExpectGreeting(s.t, c, greeting)
	return c
}

// dig asks a name server from a namespace.
func (s *site) dig(from, server string, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), vnettest.Timeout)
	defer cancel()
	var out []byte
	err := netns.Do(from, func() (err error) {
		out, err = exec.CommandContext(ctx, "dig", append([]string{"@" + server, "+tries=2", "+time=5"}, args...)...).CombinedOutput()
		return err
	})
	if err != nil {
		s.t.Fatalf("dig %v (package bind9-dnsutils): %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
