package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"podd/vnet/netns"
)

// Parameter is a rule about one kernel parameter.
type Parameter struct {
	// Name is written with slashes, as below /proc/sys.
	Name string
	// Fine says whether a value is.
	Fine func(value int) bool
	// Set is the value the remedy proposes; empty when it needs a reboot.
	Set      string
	Severity Severity
	// Why says what a value that isn't fine leads to.
	Why string
}

// Parameters are kernel parameters and the rules about them.
type Parameters struct {
	Rules []Parameter
	// Values are what the machine has, by name. A parameter that this kernel
	// does not have is not among them.
	Values map[string]int
	Err    error
}

func atLeast(n int) func(int) bool { return func(value int) bool { return value >= n } }
func exactly(n int) func(int) bool { return func(value int) bool { return value == n } }

// inotifyPerPod is how many inotify instances a desktop takes, by experience.
const inotifyPerPod = 20

// HostParameters are the rules for a host with that many pods.
func HostParameters(pods int) []Parameter {
	instances := max(128, pods*inotifyPerPod)
	return []Parameter{
		{Name: "vm/overcommit_memory", Fine: func(v int) bool { return v != 2 }, Set: "0", Severity: Warning,
			Why: "a restore maps what the pod had mapped, used or not, and strict accounting refuses it"},
		{Name: "kernel/pid_max", Fine: atLeast(32768), Set: "4194304", Severity: Warning,
			Why: "processes keep their numbers in a move, and one above the limit can't be restored here"},
		{Name: "kernel/yama/ptrace_scope", Fine: func(v int) bool { return v < 3 }, Severity: Error,
			Why: "nobody may trace a process any more, so CRIU can dump none; the value can't be lowered before a reboot"},
		{Name: "fs/inotify/max_user_instances", Fine: atLeast(instances), Set: strconv.Itoa(max(1024, 2*instances)), Severity: Warning,
			Why: fmt.Sprintf("root's programs in all pods share it, and %d pods with a desktop need some %d; a move here fails when there is none left", pods, instances)},
		{Name: "fs/inotify/max_user_watches", Fine: atLeast(8192), Set: "1048576", Severity: Warning,
			Why: "root's programs in all pods share it; a move here fails when there is none left"},
		{Name: "user/max_net_namespaces", Fine: atLeast(2*pods + 16), Set: "65536", Severity: Error,
			Why: "every pod has one, and one more while it moves"},
		{Name: "user/max_pid_namespaces", Fine: atLeast(2*pods + 16), Set: "65536", Severity: Error,
			Why: "every pod has one, and one more while it moves"},
	}
}

// ProxyParameters are the rules for the machine of the proxy.
func ProxyParameters() []Parameter {
	return []Parameter{
		{Name: "net/ipv4/ip_forward", Fine: exactly(1), Set: "1", Severity: Error,
			Why: "the proxy forwards every packet of every pod; podproxy sets it at its start and each minute, so something else resets it"},
		{Name: "net/ipv4/conf/all/rp_filter", Fine: func(v int) bool { return v != 2 }, Set: "0", Severity: Warning,
			Why: "loose filtering overrules the strict one of the pods' devices, so only the firewall's rule keeps a pod from using another's address"},
		{Name: "net/netfilter/nf_conntrack_max", Fine: atLeast(16384), Set: "262144", Severity: Warning,
			Why: "each connection of a client takes an entry; with none left new connections are dropped"},
	}
}

// LookAtParameters reads the values of the parameters that rules are about, in
// the calling thread's network namespace.
func LookAtParameters(rules []Parameter) Parameters {
	p := Parameters{Rules: rules, Values: map[string]int{}}
	for _, rule := range rules {
		text, err := netns.GetSysctl(rule.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			p.Values[rule.Name], err = strconv.Atoi(text)
		}
		p.Err = errors.Join(p.Err, err)
	}
	return p
}

// Judge names the parameters whose values are not fine.
func (p Parameters) Judge() []Finding {
	var findings []Finding
	if p.Err != nil {
		findings = append(findings, unknown("sysctl", p.Err))
	}
	for _, rule := range p.Rules {
		value, known := p.Values[rule.Name]
		if !known || rule.Fine(value) {
			continue
		}
		name := strings.ReplaceAll(rule.Name, "/", ".")
		remedy := fmt.Sprintf("remove %s=%d from /etc/sysctl.d and reboot", name, value)
		if rule.Set != "" {
			remedy = fmt.Sprintf("sysctl -w %s=%s && echo %s=%s >> /etc/sysctl.d/90-podd.conf", name, rule.Set, name, rule.Set)
		}
		findings = append(findings, Finding{
			Check: "sysctl", Severity: rule.Severity, Detail: fmt.Sprintf("%s is %d: %s", name, value, rule.Why), Remedy: remedy,
		})
	}
	if len(findings) == 0 {
		findings = append(findings, Good("sysctl", "%d parameters are fine", len(p.Values)))
	}
	return findings
}

// HugePages is when the kernel uses transparent huge pages.
type HugePages struct {
	// Always are its settings, as paths, by which it does so for programs that have
	// not asked for them.
	Always []string
	Err    error
}

// Judge is a warning where a restore can't map memory in its place, for that reason
// (checkpoint.AlwaysHuge).
func (h HugePages) Judge() []Finding {
	const check = "hugepages"
	if h.Err != nil {
		return []Finding{unknown(check, h.Err)}
	}
	var findings []Finding
	for _, name := range h.Always {
		remedy := fmt.Sprintf("echo madvise > %s && echo 'w %s - - - - madvise' >> /etc/tmpfiles.d/podd.conf", name, name)
		if filepath.Base(filepath.Dir(name)) == "transparent_hugepage" { // and not of one size
			remedy += "   # or, for the latter, boot with transparent_hugepage=madvise"
		}
		findings = append(findings, Worry(check, remedy, "%s is always: pods with many mappings, such as desktops, "+
			"take a third longer to be restored here than with madvise, by which programs that ask for huge pages have them, too", name))
	}
	if len(findings) == 0 {
		findings = append(findings, Good(check, "none that programs have not asked for"))
	}
	return findings
}

// Cgroups is how the machine's control groups are set up.
type Cgroups struct {
	// Unified is true for version 2 alone.
	Unified bool
	// Controllers are those that can be used.
	Controllers []string
	Err         error
}

// neededControllers are used by pods. Version 2 freezes without a controller.
var neededControllers = []string{"cpu", "memory", "pids"}

// LookAtCgroups looks at what is mounted at /sys/fs/cgroup.
func LookAtCgroups() Cgroups {
	const root = "/sys/fs/cgroup"
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err == nil {
		return Cgroups{Unified: true, Controllers: strings.Fields(string(data))}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Cgroups{Err: err}
	}
	entries, err := os.ReadDir(root)
	c := Cgroups{Err: err}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(root, e.Name(), "cgroup.procs")); err == nil {
			c.Controllers = append(c.Controllers, strings.Split(e.Name(), ",")...)
		}
	}
	return c
}

// Judge is an error when pods can't be limited or frozen.
func (c Cgroups) Judge() []Finding {
	if c.Err != nil {
		return []Finding{unknown("cgroup", c.Err)}
	}
	has := map[string]bool{}
	for _, name := range c.Controllers {
		has[name] = true
	}
	mode, needed := "version 2", neededControllers
	if !c.Unified {
		mode, needed = "version 1", append([]string{"freezer"}, neededControllers...)
	}
	var findings []Finding
	for _, name := range needed {
		if !has[name] {
			findings = append(findings, Bad("cgroup", fmt.Sprintf("boot with cgroup_enable=%s, or without cgroup_disable=%s, on the kernel's command line", name, name),
				"there is no controller %s: pods can't be limited and frozen as they must", name))
		}
	}
	if len(findings) == 0 {
		findings = append(findings, Good("cgroup", "%s with %s", mode, strings.Join(needed, ", ")))
	}
	return findings
}
