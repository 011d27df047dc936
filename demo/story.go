package demo

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"podd/pod"
)

// subnetBits is the size of the lab's subnets (package lab).
const subnetBits = 24

const introduction = `A running desktop changes computers, and its user stays connected.

This machine becomes a small internet for a moment: network namespaces, each in a
subnet of its own, and a router between them. The programs in it are the real ones.

   user's computer 192.0.2.10 ---+                +--- host a 10.10.1.2
                                 +---- router ----+--- host b 10.10.2.2
             proxy 10.10.0.2 ----+                +--- host c 10.10.3.2

A pod is a private place for one session: its processes, files, address and name. It
runs on one of the hosts. Users reach it by an address at the proxy, which passes on
every packet to the host where the pod is now.

`

// explanations say what each stage of a move is for.
var explanations = map[pod.Stage]string{
	pod.StagePreflight: "could the other host run all of this? same programs, kernel, processor; space",
	pod.StageReserve:   "the other host makes room: network interface, file system, limits",
	pod.StagePresync:   "the pod's private files are copied",
	pod.StageHold:      "the proxy begins to queue what comes for the pod, so nothing is lost",
	pod.StageFreeze:    "all processes stop at once",
	pod.StageDump:      "their state is read, their memory is sent",
	pod.StageTransfer:  "the rest of the state is sent, and files that changed meanwhile",
	pod.StageRestore:   "the other host makes the same processes, with their connections",
	pod.StageCommit:    "one record in the directory changes: from now on the pod is there",
	pod.StageRelease:   "the processes go on, the proxy lets the queue go, the old host cleans up",
}

func (s *show) introduce() { fmt.Fprint(s.options.Out, introduction) }

// say prints what happened and when.
func (s *show) say(format string, args ...any) {
	fmt.Fprintf(s.options.Out, "%5.1f s  %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
}

// detail prints something below what was said last.
func (s *show) detail(format string, args ...any) {
	fmt.Fprintf(s.options.Out, "         %s\n", fmt.Sprintf(format, args...))
}

// announce begins the account of a move.
func (s *show) announce(number int, from, to string) {
	fmt.Fprintf(s.options.Out, "\nMove %d of %d: from host %s to host %s, in another subnet\n\n", number, len(hosts), from, to)
	s.say("$ podctl move %s %s", podName, to)
}

// stages prints what a move consisted of. The account of the first explains.
func (s *show) stages(r *receipt, from, to string, explain bool) {
	for _, stage := range r.Stages {
		switch stage.Stage {
		case pod.StagePreflight:
			s.detail("the desktop runs on host %s", from)
		case pod.StageFreeze:
			s.detail("the desktop stands still")
		case pod.StageRelease:
			s.detail("the desktop runs on host %s", to)
		}
		size, explanation := "", ""
		if stage.Bytes > 0 {
			size = formatBytes(stage.Bytes)
		}
		if explain {
			explanation = explanations[stage.Stage]
		}
		line := fmt.Sprintf("  %-9s %8s %9s  %s", stage.Stage, formatDuration(stage.Duration.duration()), size, explanation)
		s.detail("%s", strings.TrimRight(line, " "))
	}
}

// noticed prints what the user noticed of a move.
func (s *show) noticed(l leg, during, after int64) {
	s.say("Moved: %s of memory, %s of files, %d processes and %s, open all the time.",
		formatBytes(l.receipt.MemoryBytes), formatBytes(l.receipt.PresyncFileBytes+l.receipt.FrozenFileBytes), l.receipt.Processes,
		plural(l.receipt.Connections, "TCP connection"))
	s.detail("The desktop stood still for %s; the longest the user saw no change of the picture: %s.",
		formatDuration(l.receipt.Freeze.duration()), formatDuration(l.silence))
	s.detail("The picture changed %d times during the move and goes on: %d times since.", during, after)
}

// whereabouts prints the names of the pod: which stay and which change.
func (s *show) whereabouts(resolved netip.Addr, v podView) {
	subnet := netip.PrefixFrom(v.PhysicalAddress, subnetBits).Masked()
	s.detail("DNS says: %s is %s. It is on host %s, %s, in subnet %s.", domain, resolved, v.Host, v.PhysicalAddress, subnet)
}

// conclude sums the demo up.
func (s *show) conclude() {
	out := s.options.Out
	fmt.Fprint(out, "\nIn short\n\n")
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "   move\twhole move\tdesktop stood still\tuser saw no change")
	for _, l := range s.journey {
		fmt.Fprintf(table, "   %s -> %s\t%s\t%s\t%s\n", l.from, l.to, formatDuration(l.receipt.Total.duration()),
			formatDuration(l.receipt.Freeze.duration()), formatDuration(l.silence))
	}
	table.Flush()
	stats := s.viewer.Stats()
	fmt.Fprintf(out, `
   The viewer connected once. Over this one connection came %d pictures, %s,
   while the desktop ran on hosts %s. Its address, its name and its shell (process %d)
   stayed the same.

   Before and after: %s
                     %s
   To try it yourself: podctl lab up, and podctl help

`, stats.Updates, formatBytes(stats.Bytes), strings.Join(s.route(), ", "), s.shell,
		s.picture("before.png"), s.picture("after.png"))
}

// route is every host the desktop was on, in order.
func (s *show) route() []string {
	route := []string{hosts[0]}
	for _, l := range s.journey {
		route = append(route, l.to)
	}
	return route
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func formatBytes(n int64) string {
	return units.CustomSize("%.3g %s", float64(n), 1024, []string{"B", "KiB", "MiB", "GiB"})
}

// formatDuration rounds to what a reader can use.
func formatDuration(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func remoteHost(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return ""
	}
	return host
}
