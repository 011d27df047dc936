package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var errNo = errors.New("no")

// TestJudge: made-up facts, and the worst finding they must lead to. What is not
// well must say what to do.
func TestJudge(t *testing.T) {
	const gib = 1 << 30
	path := func(change func(*Path)) Path {
		p := Path{
			To: "proxy p", From: netip.MustParseAddr("10.10.1.2"), Address: netip.MustParseAddr("10.10.0.2"),
			Interface: "eth0", Owner: "eth0", InterfaceMTU: 1500, Probed: 1500,
		}
		change(&p)
		return p
	}
	peer := func(change func(*Peer)) Peer {
		p := Peer{Kind: "host", Name: "b", Address: "10.10.2.2:7443", Alive: true, Version: "1", Ours: "1", RoundTrip: time.Millisecond, Timed: true}
		change(&p)
		return p
	}
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	certificate := func(begins, ends time.Duration) Certificate {
		return Certificate{Of: "a", NotBefore: now.Add(begins), NotAfter: now.Add(ends), Now: now, Issuers: []string{"10.10.0.2:7444"}, Command: "podd"}
	}
	host := func(name string, value int) Parameters {
		return Parameters{Rules: HostParameters(3), Values: map[string]int{name: value}}
	}
	proxy := func(name string, value int) Parameters {
		return Parameters{Rules: ProxyParameters(), Values: map[string]int{name: value}}
	}
	all := ^uint64(0)
	for _, c := range []struct {
		facts    Facts
		severity Severity
		check    string
		detail   string
		remedy   string
	}{
		{Kernel{Release: "6.18", Features: []Feature{{Name: "vxlan"}}}, OK, "kernel", "6.18 can do all that pods need: 1 ", ""},
		{Kernel{Features: []Feature{{Name: "vxlan", Module: "vxlan", Option: "CONFIG_VXLAN", Err: errNo}}}, Error, "kernel", "vxlan does not work", "modprobe vxlan"},
		{Kernel{Features: []Feature{{Name: "pid namespaces", Option: "CONFIG_PID_NS", Err: errNo}}}, Error, "kernel", "pid namespaces", "boot a kernel with CONFIG_PID_NS"},

		{Capabilities{Effective: all}, OK, "capabilities", "", ""},
		{Capabilities{Effective: all &^ (1 << 24)}, Warning, "capabilities", "CAP_SYS_RESOURCE", "CapabilityBoundingSet="},
		{Capabilities{Effective: all &^ (1 << 21)}, Error, "capabilities", "CAP_SYS_ADMIN", "systemctl edit podd"},
		{Capabilities{Err: errNo}, Warning, "capabilities", "not known", "log"},

		{Parameters{Rules: HostParameters(3), Values: map[string]int{}}, OK, "sysctl", "", ""},
		{host("vm/overcommit_memory", 1), OK, "sysctl", "", ""},
		{host("vm/overcommit_memory", 2), Warning, "sysctl", "vm.overcommit_memory is 2", "sysctl -w vm.overcommit_memory=0"},
		{host("kernel/pid_max", 4096), Warning, "sysctl", "kernel.pid_max is 4096", "sysctl -w kernel.pid_max=4194304"},
		{host("kernel/yama/ptrace_scope", 2), OK, "sysctl", "", ""},
		{host("kernel/yama/ptrace_scope", 3), Error, "sysctl", "CRIU can dump none", "reboot"},
		{host("fs/inotify/max_user_instances", 128), OK, "sysctl", "", ""},
		{Parameters{Rules: HostParameters(30), Values: map[string]int{"fs/inotify/max_user_instances": 128}}, Warning, "sysctl", "30 pods", "sysctl -w fs.inotify.max_user_instances=1200"},
		{host("user/max_net_namespaces", 5), Error, "sysctl", "every pod has one", "sysctl -w user.max_net_namespaces="},
		{proxy("net/ipv4/ip_forward", 1), OK, "sysctl", "", ""},
		{proxy("net/ipv4/ip_forward", 0), Error, "sysctl", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"},
		{proxy("net/ipv4/conf/all/rp_filter", 2), Warning, "sysctl", "another's address", "sysctl -w net.ipv4.conf.all.rp_filter=0"},
		{proxy("net/netfilter/nf_conntrack_max", 1000), Warning, "sysctl", "new connections", "nf_conntrack_max="},
		{Parameters{Err: errNo}, Warning, "sysctl", "not known", "log"},

		{HugePages{}, OK, "hugepages", "", ""},
		{HugePages{Always: []string{"/x/transparent_hugepage/enabled"}}, Warning, "hugepages", "/x/transparent_hugepage/enabled is always: pods with many mappings, such as desktops, take a third longer",
			"echo madvise > /x/transparent_hugepage/enabled && echo 'w /x/transparent_hugepage/enabled - - - - madvise' >> /etc/tmpfiles.d/podd.conf   # or, for the latter, boot with transparent_hugepage=madvise"},
		{HugePages{Always: []string{"/x/transparent_hugepage/hugepages-64kB/enabled"}}, Warning, "hugepages", "hugepages-64kB/enabled is always",
			"echo madvise > /x/transparent_hugepage/hugepages-64kB/enabled"},
		{HugePages{Err: errNo}, Warning, "hugepages", "not known", "log"},

		{Cgroups{Unified: true, Controllers: []string{"cpu", "memory", "pids", "io"}}, OK, "cgroup", "version 2", ""},
		{Cgroups{Controllers: []string{"cpu", "cpuacct", "memory", "pids", "freezer"}}, OK, "cgroup", "version 1", ""},
		{Cgroups{Controllers: []string{"cpu", "memory", "pids"}}, Error, "cgroup", "no controller freezer", "cgroup_enable=freezer"},
		{Cgroups{Unified: true, Controllers: []string{"cpu", "pids"}}, Error, "cgroup", "no controller memory", "cgroup_enable=memory"},
		{Cgroups{Err: errNo}, Warning, "cgroup", "not known", "log"},

		{Space{Name: "pods", Path: "/x", Free: 10 * gib, Total: 20 * gib}, OK, "space", "10240 of 20480 MiB free for pods", ""},
		{Space{Path: "/x", Free: gib, Total: 100 * gib}, Warning, "space", "", "du -xh --max-depth=2 /x"},
		{Space{Path: "/x", Free: 1 << 20, Total: 100 * gib}, Error, "space", "", "podctl image rm"},
		{Space{Path: "/x", Free: 10 * gib, Total: 20 * gib, Files: 5, AllFiles: 1000}, Error, "space", "no room for more files", "du"},
		{Space{Path: "/x", Err: errNo}, Warning, "space", "/x", "log"},
		{Memory{Available: 4 * gib, Total: 8 * gib}, OK, "memory", "", ""},
		{Memory{Available: gib / 2, Total: 8 * gib}, Warning, "memory", "twice its size", "podctl move"},
		{Memory{Available: gib / 8, Total: 8 * gib}, Error, "memory", "hardly be started", "ps -eo rss"},

		{certificate(-48*time.Hour, 120*time.Hour), OK, "certificate", "120 hours", ""},
		{certificate(-48*time.Hour, 20*time.Hour), Warning, "certificate", "20h0m0s", "10.10.0.2:7444"},
		{certificate(-48*time.Hour, -time.Hour), Error, "certificate", "ended at 2026-01-09T23:00:00Z", "podd --join"},
		{certificate(time.Hour, 120*time.Hour), Error, "certificate", "begins to be good", "timedatectl"},

		{path(func(*Path) {}), OK, "mtu", "1500 bytes pass to proxy p", ""},
		{path(func(p *Path) { p.InterfaceMTU, p.Probed = 1400, 1400 }), Warning, "mtu", "eth0 towards proxy p takes packets of 1400", "ip link set dev eth0 mtu 1500"},
		{path(func(p *Path) { p.RouteMTU, p.Probed = 1450, 1450 }), Warning, "mtu", "the route to proxy p says packets of 1450", "take mtu 1450 out"},
		{path(func(p *Path) { p.Probed = 1400 }), Warning, "mtu", "at most 1400 bytes pass", "tracepath -n 10.10.0.2"},
		{path(func(p *Path) { p.InterfaceMTU = 9000 }), OK, "mtu", "", ""},
		{path(func(p *Path) { p.Probed, p.ProbeErr = 0, errNo }), OK, "mtu", "could not be measured: no", ""},
		{path(func(p *Path) { p.LookErr = errNo }), Error, "mtu", "the way to proxy p: no", "ip route get 10.10.0.2"},
		{path(func(p *Path) { p.Owner = "" }), Error, "mtu", "no interface has the address 10.10.1.2", "--address"},
		{path(func(p *Path) { p.Owner, p.RPFilter = "eth1", 1 }), Warning, "sysctl", "come in by eth1 are dropped", "sysctl -w net.ipv4.conf.eth1.rp_filter=2"},
		{path(func(p *Path) { p.Owner, p.RPFilter = "eth1", 2 }), OK, "mtu", "", ""},

		{peer(func(*Peer) {}), OK, "clock", "the same time", ""},
		{peer(func(p *Peer) { p.Offset = -900 * time.Millisecond }), OK, "clock", "", ""},
		{peer(func(p *Peer) { p.Offset = 3 * time.Second }), Warning, "clock", "3s ahead of", "timedatectl set-ntp true"},
		{peer(func(p *Peer) { p.Offset = -10 * time.Minute }), Error, "clock", "10m0s behind", "timedatectl set-ntp true"},
		{peer(func(p *Peer) { p.Offset, p.RoundTrip = 1500*time.Millisecond, 2*time.Second }), OK, "clock", "", ""},
		{peer(func(p *Peer) { p.Version = "2" }), Warning, "hosts", "version 2, this one 1", "same version"},
		{peer(func(p *Peer) { p.Alive = false }), Warning, "hosts", "host b is down", "podctl host rm b"},
		{peer(func(p *Peer) { p.Err = errNo }), Error, "hosts", "can't be reached from here at 10.10.2.2:7443", "curl -k https://10.10.2.2:7443/healthz"},
		{peer(func(p *Peer) { p.Kind, p.Alive = "proxy", false }), Error, "proxy", "proxy b is down", "systemctl start podproxy"},
		{peer(func(p *Peer) { p.Kind, p.Err = "proxy", errNo }), Error, "proxy", "can't be reached", "podproxy hang on b"},

		{Directory{Latency: time.Millisecond}, OK, "directory", "1ms", ""},
		{Directory{Latency: 300 * time.Millisecond}, Warning, "directory", "300ms", "etcdctl check perf"},
		{Directory{Err: errNo}, Error, "directory", "can't be reached: no", "systemctl status podproxy"},
	} {
		findings := c.facts.Judge()
		if len(findings) == 0 {
			t.Errorf("%+v: no finding", c.facts)
			continue
		}
		worst := findings[0]
		rank := map[Severity]int{OK: 0, Warning: 1, Error: 2}
		for _, f := range findings {
			if rank[f.Severity] > rank[worst.Severity] || rank[f.Severity] == rank[worst.Severity] && f.Check == c.check {
				worst = f
			}
			if (f.Severity == OK) != (f.Remedy == "") {
				t.Errorf("%+v: the remedy of %+v", c.facts, f)
			}
		}
		if worst.Severity != c.severity || worst.Check != c.check || !strings.Contains(worst.Detail, c.detail) || !strings.Contains(worst.Remedy, c.remedy) {
			t.Errorf("%+v:\n got %+v\nwant %s of %s about %q, to be mended by %q", c.facts, worst, c.severity, c.check, c.detail, c.remedy)
		}
	}
}

// TestCondense: what is well is told once for each check, what isn't always.
func TestCondense(t *testing.T) {
	var all []Facts
	for _, name := range []string{"b", "c", "d", "e"} {
		all = append(all, Peer{Kind: "host", Name: name, Alive: name != "d", RoundTrip: time.Millisecond})
	}
	all = append(all, Directory{Latency: time.Millisecond}, Peer{Kind: "host", Name: "f", Alive: true, RoundTrip: time.Millisecond})
	findings := Judge(all...)
	if len(findings) != 3 || findings[1].Severity != Warning || findings[2].Check != "directory" ||
		findings[0].Detail != "host b answers in 1ms; host c answers in 1ms; host e answers in 1ms; and 1 more" {
		t.Errorf("found %+v", findings)
	}
}

// TestClockOffset: the clock was read in the middle of the call.
func TestClockOffset(t *testing.T) {
	began := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	ended := began.Add(40 * time.Millisecond)
	for offset, there := range map[time.Duration]time.Time{
		0:                began.Add(20 * time.Millisecond),
		time.Second:      began.Add(1020 * time.Millisecond),
		-5 * time.Second: began.Add(20*time.Millisecond - 5*time.Second),
	} {
		if got := ClockOffset(began, there, ended); got != offset {
			t.Errorf("a clock that showed %s is %s ahead, want %s", there, got, offset)
		}
	}
}

// TestFindingsCrossTheNetwork unchanged.
func TestFindingsCrossTheNetwork(t *testing.T) {
	sent := []Finding{Good("criu", "version %d", 4), Worry("mtu", "mend it", "narrow"), Bad("space", "delete", "full")}
	got := FromProto(ToProto(sent))
	if len(got) != len(sent) {
		t.Fatalf("%d findings arrive, want %d", len(got), len(sent))
	}
	for i := range sent {
		if got[i] != sent[i] {
			t.Errorf("%+v arrives as %+v", sent[i], got[i])
		}
	}
}

func TestEchoRequest(t *testing.T) {
	m := echoRequest(0x1234, 7, 56)
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(m[i])<<8 | uint32(m[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if len(m) != 64 || sum != 0xffff || !isEcho(m, 0x1234, 7) || isEcho(m, 0x1234, 8) {
		t.Errorf("%d bytes, sum %x: % x", len(m), sum, m[:8])
	}
}
