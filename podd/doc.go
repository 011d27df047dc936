// Package podd is the host daemon: it serves the API, creates and ends pods,
// and carries out both sides of a move. It composes namespace, checkpoint,
// vnet, filesync and directory, which do not know each other.
//
// What the daemon knows is read anew at every start: the pods that live from
// the runtime's state on disk and the kernel, what should be from the
// directory. It may be killed at any instruction; pods live on without it.
package podd
