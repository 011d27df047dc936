// Package pod is the domain of podd: what a pod, a host, a binding and a move
// are, the names and numbers they carry, and the sentinel errors every other
// package speaks in. It imports nothing of the project, so everything may
// import it.
//
// A pod is one session: a tree of processes in private namespaces, known by
// virtual names that never change. Where it runs, and under which label its
// packets travel, is its Binding; a Move replaces one Binding by the next.
package pod
