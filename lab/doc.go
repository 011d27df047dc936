// Package lab makes a small internet of network namespaces on one Linux
// machine (a router, a proxy, a client and two to eight hosts, each in its own
// subnet) and runs the real daemons in it. It is what one tries podd on, and
// what the demo, the end-to-end tests and the benchmarks run on.
//
//	client 192.0.2.10/24 ─┐                ┌─ a 10.10.1.2/24  podd
//	                      ├─── router ─────┼─ b 10.10.2.2/24  podd
//	proxy  10.10.0.2/24 ──┘  .1 on each    └─ ...
//	  podproxy, with the directory; the public prefix is routed to it
//
// No device of a lab is in the machine's own network namespace, so nothing can
// leak in or out. Every daemon has its own state directory, run directory and
// cgroup, so files of pods really move between hosts.
//
// The lab is a cluster of its own, made by the proxy: its hosts join with tokens
// when they are started for the first time.
//
// What is up is noted on disk (RunDir), for processes that come later; but
// Down goes by what it finds: namespaces, mounts, cgroups and processes that
// belong to a lab. So it works after a crash of anything and on a lab half made.
package lab
