//go:build root

package datapath

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vnettest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// snapshot describes the proxy's kernel state, with labels replaced by the
// number of their pod, so that two states of different labels can be compared.
func (l *lab) snapshot() string {
	l.t.Helper()
	var lines []string
	l.Proxy.Do(l.t, func() error {
		c, err := netns.Dial("", unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer c.Close()
		links, err := c.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, link := range links {
			name := link.Attrs().Name
			for _, p := range l.pods {
				if name == deviceName(p.binding.Label) {
					name = "device of " + p.virtual()
				}
			}
			names[link.Attrs().Index] = name
			lines = append(lines, fmt.Sprintf("link %s %s", name, link.Attrs().Flags))
		}
		neighbors, err := c.NeighList(0, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, n := range neighbors {
			// The kernel's own entries come and go.
			if n.State&(netlink.NUD_PERMANENT|netlink.NUD_INCOMPLETE) != 0 {
				lines = append(lines, fmt.Sprintf("neighbour %s %s %d", names[n.LinkIndex], n.IP, n.State))
			}
		}
		entries, err := c.NeighList(0, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, e := range entries {
			lines = append(lines, fmt.Sprintf("forwarding %s %s %t", names[e.LinkIndex], e.HardwareAddr, e.VNI != 0))
		}
		routes, err := c.RouteList(nil, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route %s %s", r.Dst, names[r.LinkIndex]))
		}
		for _, name := range []string{hostSet, serviceSet} {
			set, err := c.IpsetList(name)
			if err != nil {
				return err
			}
			for _, e := range set.Entries {
				lines = append(lines, fmt.Sprintf("set %s %s", name, e.IP))
			}
		}
		count, err := ruleOwner.Count(rules(l.config))
		lines = append(lines, fmt.Sprintf("rules %d", count))
		return err
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestNoDrift moves a pod twenty times and finds everything as it was.
func TestNoDrift(t *testing.T) {
	l := newLab(t, 2)
	p := l.addPod(0)
	l.addPod(1)
	l.set(l.state())
	vnettest.Serve(t, p.path, ":80", "pod")
	c := converse(t, l.Client.Path, p.public()+":80", "pod")
	before := l.snapshot()
	for i := range 20 {
		l.move(p, (i+1)%2, i%4 != 3)
	}
	c.progress(t)
	c.end(t)
	l.settle()
	if after := l.snapshot(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestSetIsIdempotent repeats a Set and counts the changes it makes, with a
// datapath that has made everything itself and with one that has adopted it.
func TestSetIsIdempotent(t *testing.T) {
	l := newLab(t, 2)
	p := l.addPod(0)
	l.addPod(1)
	next := l.newBinding(1, 1)
	state := l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next, path.Held = &next, true })
	for range 2 {
		l.set(state)
		first := l.datapath.Stats().Changes
		before := l.snapshot()
		l.set(state)
		if n := l.datapath.Stats().Changes - first; n != 0 {
			t.Errorf("the second Set made %d changes", n)
		}
		l.datapath.Resync()
		l.set(state)
		if n := l.datapath.Stats().Changes - first; n != 0 {
			t.Errorf("a Set after Resync made %d changes", n)
		}
		if after := l.snapshot(); after != before {
			t.Errorf("a Set after Resync changed\n%s\nto\n%s", before, after)
		}
		l.restart()
	}
}

// TestRestart restarts the proxy under a connection, then during a hold, then
// with a move that was committed and a pod that was removed meanwhile.
func TestRestart(t *testing.T) {
	l := newLab(t, 2)
	p, gone := l.addPod(0), l.addPod(1)
	l.set(l.state())
	vnettest.Serve(t, p.path, ":80", "pod")
	c := converse(t, l.Client.Path, p.public()+":80", "pod")
	l.restart()
	c.progress(t)
	l.set(l.state())
	c.progress(t)

	next := l.newBinding(1, 1)
	held := l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next, path.Held = &next, true })
	l.set(held)
	l.restart()
	if _, held := l.datapath.Stats().Held[p.binding.Virtual]; !held {
		t.Error("the hold was not adopted")
	}
	l.set(held)
	l.transplant(p, next, 1)
	l.unblock(p)
	l.restart()
	l.pods = slices.DeleteFunc(l.pods, func(p *labPod) bool { return p == gone })
	l.set(l.state())
	c.progress(t)
	c.end(t)
	l.settle()
	if s := l.datapath.Stats(); s.Pods != 1 || s.Devices != 1 || len(s.Held) != 0 {
		t.Errorf("after the restart: %+v, want one pod, one device, no hold", s)
	}
}

// TestInterruptedRelease kills the proxy after each single step of a release.
// Whatever was queued must arrive once the next proxy has set the state.
func TestInterruptedRelease(t *testing.T) {
	steps := []struct {
		name string
		step func(k *kernel, virtual netip.Addr, old, next *device) error
	}{
		{"redirect", func(k *kernel, _ netip.Addr, old, next *device) error { return k.redirect(old, next) }},
		{"route", func(k *kernel, virtual netip.Addr, _, next *device) error { return k.setRoute(virtual, next) }},
		{"old neighbour", func(k *kernel, virtual netip.Addr, old, _ *device) error {
			return k.setNeighbor(old, virtual, neighborOpen)
		}},
		{"new neighbour", func(k *kernel, virtual netip.Addr, _, next *device) error {
			return k.setNeighbor(next, virtual, neighborOpen)
		}},
	}
	for done := range len(steps) + 1 {
		t.Run(fmt.Sprintf("after %d steps", done), func(t *testing.T) {
			l := newLab(t, 2)
			p := l.addPod(0)
			next := l.newBinding(1, 1)
			held := l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next = &next })
			l.set(held)
			vnettest.Serve(t, p.path, ":80", "pod")
			c := vnettest.Dial(t, l.Client.Path, p.public()+":80")
			vnettest.ExpectGreeting(t, c, "pod")
			if err := l.datapath.Hold(p.binding.Virtual); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("held")); err != nil {
				t.Fatal(err)
			}
			old, to := l.datapath.devices[p.binding.Label], l.datapath.devices[next.Label]
			l.transplant(p, next, 1)
			l.unblock(p)
			for _, s := range steps[:done] {
				if err := s.step(l.datapath.kernel, p.binding.Virtual, old, to); err != nil {
					t.Fatal(err)
				}
			}
			l.restart()
			l.set(l.state())
			vnettest.ExpectGreeting(t, c, "held")
			if err := vnettest.Echo(c, "and on"); err != nil {
				t.Error(err)
			}
			l.settle()
			if l.datapath.devices[next.Label].redirect != (redirect{}) {
				t.Error("the redirection was not removed")
			}
		})
	}
}

// TestRulesAreConstant has one pod, then a hundred, then other prefixes.
func TestRulesAreConstant(t *testing.T) {
	l := newLab(t, 1)
	count := func() int {
		t.Helper()
		var n int
		l.Proxy.Do(t, func() (err error) {
			n, err = l.datapath.CountRules()
			return err
		})
		return n
	}
	s := l.state()
	for number := range 100 {
		s.Pods = append(s.Pods, PodPath{Binding: l.newBinding(number+1, 0)})
		if number == 0 {
			l.set(s)
		}
	}
	one := count()
	l.set(s)
	if hundred := count(); one != hundred || one == 0 {
		t.Errorf("%d rules with one pod, %d with a hundred", one, hundred)
	}
	if got := l.datapath.Stats(); got.Pods != 100 || got.Devices != 100 {
		t.Errorf("%+v, want 100 pods and devices", got)
	}
	l.config.PublicPrefix = netip.MustParsePrefix("198.19.0.0/16")
	l.restart()
	if other := count(); other != one {
		t.Errorf("%d rules with other prefixes, want %d", other, one)
	}
	l.config.AllowUnderlay = true
	l.restart()
	if open := count(); open != one-2 {
		t.Errorf("%d rules with AllowUnderlay, want %d", open, one-2)
	}
}

// TestCleanup leaves the proxy as it was found.
func TestCleanup(t *testing.T) {
	l := newLab(t, 1)
	for range 3 {
		l.addPod(0)
	}
	l.set(l.state())
	if err := l.datapath.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.Proxy.Do(t, func() error { return Cleanup(l.config, slog.New(slog.DiscardHandler)) })
	}
	l.Proxy.Do(t, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		if len(links) != 2 {
			t.Errorf("%d devices are left, want lo and uplink", len(links))
		}
		if n, err := ruleOwner.Count(rules(l.config)); err != nil || n != 0 {
			t.Errorf("%d rules are left (%v)", n, err)
		}
		sets, err := netlink.IpsetListAll()
		if len(sets) != 0 {
			t.Errorf("sets are left: %v", sets)
		}
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if len(routes) != 0 {
			t.Errorf("routes are left: %v", routes)
		}
		return err
	})
	l.open()
}

// TestBadStates checks that what can't be is refused, and keeps nothing else
// from working.
func TestBadStates(t *testing.T) {
	l := newLab(t, 1)
	p := l.addPod(0)
	vnettest.Serve(t, p.path, ":80", "pod")
	outside := l.newBinding(2, 0)
	outside.Virtual = netip.MustParseAddr("10.0.0.1")
	stolen := l.newBinding(3, 0)
	stolen.Label = p.binding.Label
	for name, bad := range map[string]pod.Binding{"address outside the prefix": outside, "label of another pod": stolen, "twice the same pod": p.binding} {
		s := l.state()
		s.Pods = append(s.Pods, PodPath{Binding: bad})
		err := netns.Do(l.Proxy.Path, func() error { return l.datapath.Set(t.Context(), s) })
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Client.Path, p.public()+":80"), "pod")
	}
	l.set(l.state())
}
