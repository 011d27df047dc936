//go:build root

package datapath

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"podd/pod"
	"podd/vnet"
	"podd/vnet/vnettest"
)

// lab is a topology with a datapath in the proxy and a vnet in every host.
type lab struct {
	*vnettest.Topology
	t        testing.TB
	config   Config
	datapath *Datapath
	networks []*vnet.Network
	pods     []*labPod
	labels   pod.Label
}

// labPod is a pod's namespace, which stands for the pod: it is attached to
// another host where the real one would be restored there.
type labPod struct {
	path    string
	host    int
	binding pod.Binding
}

func (p *labPod) public() string  { return p.binding.Public.String() }
func (p *labPod) virtual() string { return p.binding.Virtual.String() }

func newLab(t testing.TB, hosts int) *lab {
	t.Helper()
	l := &lab{Topology: vnettest.New(t, hosts), t: t}
	l.config = Config{
		Physical: l.Proxy.Address, PublicPrefix: vnettest.PublicPrefix, VirtualPrefix: vnettest.VirtualPrefix,
		Linger: 1, // a nanosecond: superseded devices go at once
	}
	for _, host := range l.Hosts {
		var n *vnet.Network
		host.Do(t, func() (err error) {
			n, err = vnet.New(vnet.Config{Physical: host.Address, Proxy: l.Proxy.Address}, slog.New(slog.DiscardHandler))
			return err
		})
		t.Cleanup(func() { n.Close() })
		if err := n.EnsureAnchor(); err != nil {
			t.Fatal(err)
		}
		l.networks = append(l.networks, n)
	}
	l.open()
	t.Cleanup(func() { l.datapath.Close() })
	return l
}

// open starts the datapath, as podproxy does when it starts.
func (l *lab) open() {
	l.t.Helper()
	l.Proxy.Do(l.t, func() (err error) {
		l.datapath, err = Open(l.config, slog.New(slog.DiscardHandler))
		return err
	})
}

// restart is the end of one podproxy and the start of the next.
func (l *lab) restart() {
	l.t.Helper()
	if err := l.datapath.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.open()
}

// newBinding places a pod on a host under a label never used before.
func (l *lab) newBinding(number, host int) pod.Binding {
	l.labels++
	address := func(p netip.Prefix) netip.Addr {
		a := p.Addr().As4()
		a[2], a[3] = byte(number>>8), byte(number)
		return netip.AddrFrom4(a)
	}
	return pod.Binding{
		Virtual: address(vnettest.VirtualPrefix), Public: address(vnettest.PublicPrefix),
		Host: l.Hosts[host].Name, Physical: l.Hosts[host].Address, Label: l.labels, Epoch: 1,
	}
}

// addPod makes a pod on a host; set makes it reachable.
func (l *lab) addPod(host int) *labPod {
	l.t.Helper()
	p := &labPod{path: filepath.Join(l.t.TempDir(), fmt.Sprintf("pod-%d", len(l.pods)+1)), host: host}
	p.binding = l.newBinding(len(l.pods)+1, host)
	l.t.Cleanup(func() {
		if err := l.networks[0].DeleteNamespace(p.path); err != nil {
			l.t.Error(err)
		}
	})
	if err := l.networks[host].CreateNamespace(p.path); err != nil {
		l.t.Fatal(err)
	}
	if err := l.networks[host].Attach(p.path, p.binding, vnet.AttachOptions{}); err != nil {
		l.t.Fatal(err)
	}
	l.pods = append(l.pods, p)
	return p
}

// state is the state in which all pods are where they are.
func (l *lab) state() State {
	var s State
	for _, host := range l.Hosts {
		s.Hosts = append(s.Hosts, host.Address)
	}
	for _, p := range l.pods {
		s.Pods = append(s.Pods, PodPath{Binding: p.binding})
	}
	return s
}

func (l *lab) set(s State) {
	l.t.Helper()
	l.Proxy.Do(l.t, func() error { return l.datapath.Set(context.Background(), s) })
}

// with returns a copy of s in which one pod's path is changed.
func (s State) with(virtual netip.Addr, change func(*PodPath)) State {
	s.Pods = slices.Clone(s.Pods)
	for i := range s.Pods {
		if s.Pods[i].Binding.Virtual == virtual {
			change(&s.Pods[i])
		}
	}
	return s
}

// transplant moves the pod's namespace to another host, blocked: it is what
// checkpoint and restore do, as far as the network can tell.
func (l *lab) transplant(p *labPod, next pod.Binding, host int) {
	l.t.Helper()
	if err := l.networks[p.host].Block(p.path); err != nil {
		l.t.Fatal(err)
	}
	if err := l.networks[p.host].Detach(p.path); err != nil {
		l.t.Fatal(err)
	}
	if err := l.networks[host].Attach(p.path, next, vnet.AttachOptions{Blocked: true}); err != nil {
		l.t.Fatal(err)
	}
	p.binding, p.host = next, host
}

func (l *lab) unblock(p *labPod) {
	l.t.Helper()
	if err := l.networks[p.host].Unblock(p.path); err != nil {
		l.t.Fatal(err)
	}
}

// move takes a pod to another host in the order of a real move, driven by
// nothing but states.
func (l *lab) move(p *labPod, host int, hold bool) {
	l.t.Helper()
	next := l.newBinding(int(p.binding.Virtual.As4()[3]), host)
	reserved := l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next = &next })
	l.set(reserved)
	if hold {
		l.set(reserved.with(p.binding.Virtual, func(path *PodPath) { path.Held = true }))
	}
	l.transplant(p, next, host)
	l.unblock(p)
	l.set(l.state())
}

// settle waits until superseded devices are gone.
func (l *lab) settle() {
	l.t.Helper()
	vnettest.Eventually(l.t, "superseded devices are deleted", func() bool { return l.datapath.Stats().Superseded == 0 })
}
