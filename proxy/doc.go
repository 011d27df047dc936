// Package proxy is podproxy, the session proxy appliance: it keeps pods
// reachable at their addresses and names wherever they run. It follows the
// directory and brings the kernel (package datapath) and the name server
// (package dns) in line with it.
//
// The directory is the only source of what should be, and the kernel keeps what
// is. So podproxy may be killed at any instruction and started again: connections
// live on meanwhile, and the first view of the directory puts everything right.
// Stopping it leaves the kernel as it is, on purpose; Cleanup removes it.
//
// One more pod costs the same whether there are ten or ten thousand: a view tells
// which pods have changed since an earlier one, and only their paths are worked out
// and set. All paths are whenever that is not known: at the start, after a failure,
// after an interrupted watch; and every minute they are compared with the kernel.
//
// # A move, as the proxy sees it
//
// When the journal shows a running move, the target's labelled device is made
// early. The source asks for the hold, by the journal and by a call that returns
// once packets queue; the hold ends with the move's State: on commit the pod's
// binding is the next one, the route switches and the queue goes there; on abort
// it goes to the old one. If neither comes, the hold ends after holdLimit, which
// costs nothing but retransmissions.
package proxy
