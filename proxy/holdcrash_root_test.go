//go:build root

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
	"podd/vnet"
	"podd/vnet/vnettest"
)

// newApartSite is a site whose directory is not podproxy's own, so that it
// goes on when podproxy is killed.
func newApartSite(t *testing.T, hosts int, change func(*Config)) *site {
	t.Helper()
	s := &site{Topology: vnettest.New(t, hosts), t: t, config: DefaultConfig()}
	quiet := slog.New(slog.DiscardHandler)
	s.config.Name, s.config.Address = "proxy", s.Proxy.Address.String()
	s.config.StateDir, s.config.RunDir = t.TempDir(), t.TempDir()
	s.issuer = trusttest.InitIn(t, trust.Dir(s.config.StateDir))
	embedded, err := directory.StartEmbedded(t.Context(), directory.EmbeddedOptions{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", Name: "directory", Credentials: s.issuer, Unsynced: true, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = embedded.Close() })
	if s.dir, err = directory.Open(t.Context(), directory.Options{Endpoints: []string{embedded.Endpoint()}, TLS: s.issuer.DirectoryTLS(), Log: quiet, Timeout: vnettest.Timeout}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.dir.Close() })
	inside := vnettest.Listen(t, s.Proxy.Path, "127.0.0.1:0")
	s.bring(inside, strings.TrimPrefix(embedded.Endpoint(), "https://"))
	s.config.Directory = "https://" + inside.Addr().String()
	change(&s.config)
	s.start()
	t.Cleanup(func() { s.stop(unix.SIGKILL) })
	s.ready()
	for i, host := range s.Hosts {
		s.join(i, host)
	}
	return s
}

// bring connects whoever comes to l, in the proxy's namespace, with an address
// of ours.
func (s *site) bring(l net.Listener, to string) {
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
			out, err := net.Dial("tcp", to)
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
}

func (s *site) listHolds() []*poddv1.Hold {
	s.t.Helper()
	client := poddv1connect.NewProxyServiceClient(s.client(s.issuer), fmt.Sprintf("https://%s:%d", s.Proxy.Address, DefaultPort), api.ClientOptions())
	ctx, cancel := context.WithTimeout(s.t.Context(), vnettest.Timeout)
	defer cancel()
	response, err := client.ListHolds(ctx, connect.NewRequest(&poddv1.ListHoldsRequest{}))
	if err != nil {
		s.t.Fatal(err)
	}
	return response.Msg.GetHolds()
}

// countResets makes the kernel of a namespace count the TCP resets that arrive.
func (s *site) countResets(path string) (count func() string) {
	s.t.Helper()
	iptables := func(args ...string) string {
		var out []byte
		vnettest.Do(s.t, path, func() (err error) {
			if out, err = exec.Command("iptables", args...).CombinedOutput(); err != nil {
				err = fmt.Errorf("iptables %v: %w: %s", args, err, out)
			}
			return err
		})
		return string(out)
	}
	iptables("-I", "INPUT", "-p", "tcp", "--tcp-flags", "RST", "RST")
	return func() string {
		fields := strings.Fields(strings.Split(iptables("-nvxL", "INPUT"), "\n")[2])
		return fields[0]
	}
}

// copyOf attaches a namespace without programs to a host as one incarnation of
// a pod: it counts what it gets, and would answer connections with resets.
func (s *site) copyOf(binding pod.Binding, host int) (received func() uint64) {
	s.t.Helper()
	path, n := filepath.Join(s.t.TempDir(), "copy"), s.networks[host]
	s.t.Cleanup(func() {
		if err := n.DeleteNamespace(path); err != nil {
			s.t.Error(err)
		}
	})
	if err := errors.Join(n.CreateNamespace(path), n.Attach(path, binding, vnet.AttachOptions{})); err != nil {
		s.t.Fatal(err)
	}
	return func() uint64 {
		_, received := vnettest.Packets(s.t, path, vnet.NIC)
		return received
	}
}

// TestKilledWhileHolding kills podproxy while it holds a pod's packets. Whatever
// becomes of the move, and whenever, the packets go to the copy that the
// directory names and to no other, and no client is told that its connection
// has ended.
func TestKilledWhileHolding(t *testing.T) {
	for _, c := range []struct {
		name string
		// decided is how the move ends; running never does.
		decided pod.MoveState
		// dead decides before podproxy is back.
		dead bool
	}{
		{"committed meanwhile", pod.MoveCommitted, true},
		{"committed afterwards", pod.MoveCommitted, false},
		{"aborted meanwhile", pod.MoveAborted, true},
		{"aborted afterwards", pod.MoveAborted, false},
		{"never decided", pod.MoveRunning, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newApartSite(t, 2, func(config *Config) {
				if c.decided == pod.MoveRunning {
					config.HoldLimit = "500ms"
				}
			})
			p := s.run("alice", 0)
			vnettest.Serve(t, p.path, ":80", "alice")
			conn := s.connect(s.Client.Path, p, p.public()+":80", "alice")
			resets := s.countResets(s.Client.Path)
			before := p.Binding
			m := s.beginMove(p, 1)
			s.stop(unix.SIGKILL)
			if _, err := conn.Write([]byte("held")); err != nil {
				t.Fatal(err)
			}
			newcomer := make(chan error, 1)
			go func() {
				c, err := vnettest.TryDial(s.Client.Path, p.public()+":80", vnettest.Timeout)
				if err == nil {
					err = c.Close()
				}
				newcomer <- err
			}()

			var wrong func() uint64
			decide := func() {
				t.Helper()
				var err error
				switch c.decided {
				case pod.MoveCommitted:
					err = errors.Join(s.dir.CommitMove(t.Context(), m.ID), s.networks[1].Unblock(p.path))
				case pod.MoveAborted:
					err = s.dir.AbortMove(t.Context(), m.ID, pod.StageDump, errors.New("no"))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if c.decided == pod.MoveCommitted {
				s.transplant(p, m, 1)
				wrong = s.copyOf(before, 0)
			} else {
				wrong = s.copyOf(m.Next, 1)
			}
			if c.dead {
				decide()
			}
			s.start()
			s.ready()
			if !c.dead {
				if c.decided != pod.MoveRunning { // that one may be over already
					vnettest.Eventually(t, "the hold is listed again", func() bool {
						holds := s.listHolds()
						return len(holds) == 1 && holds[0].GetPod() == "alice" && holds[0].GetMove() == m.ID
					})
				}
				decide()
			}
			vnettest.ExpectGreeting(t, conn, "held") // its echo
			if err := vnettest.Echo(conn, "and after"); err != nil {
				t.Error(err)
			}
			if err := <-newcomer; err != nil {
				t.Errorf("who connected while packets queued: %v", err)
			}
			if n := resets(); n != "0" {
				t.Errorf("the client got %s resets", n)
			}
			if n := wrong(); n != 0 {
				t.Errorf("the copy that must not get any got %d packets", n)
			}
			vnettest.Eventually(t, "no hold is listed", func() bool { return len(s.listHolds()) == 0 })
			outcome := map[pod.MoveState]string{pod.MoveCommitted: "committed", pod.MoveAborted: "aborted", pod.MoveRunning: "expired"}[c.decided]
			if metric := fmt.Sprintf("podproxy_hold_seconds_count{outcome=%q} 1", outcome); !c.dead && !strings.Contains(s.fetch("/metrics"), metric) {
				t.Errorf("there is no metric %s", metric)
			}
		})
	}
}
