// Package directory is podd's only database: hosts, pods, bindings, labels and
// the journal of moves, as JSON records in etcd. Everything that must be decided
// once for the whole cluster (a name taken, an address given, a move committed
// or aborted) is one etcd transaction here, and nothing else is.
//
// # Records
//
//	/podd/cluster             Cluster, written once
//	/podd/hosts/NAME          pod.Host, for as long as the host has joined
//	/podd/proxies/NAME        pod.Proxy
//	/podd/alive/hosts/NAME    exists while the host's lease lasts
//	/podd/alive/proxies/NAME  exists while the proxy's lease lasts
//	/podd/pods/NAME           pod.Pod with its authoritative pod.Binding
//	/podd/moves/ID            pod.Move, the journal
//	/podd/addresses/OFFSET    name of the pod that has the address prefix+OFFSET
//	/podd/tokens/ID           TokenRecord, until it expires
//	/podd/members/KIND.NAME   Member: who has which certificates
//	/podd/revoked/SERIAL      whose revoked certificate it is, until that expires
//	/podd/allocator           how many labels were given, the last address given
//
// # Transactions
//
// Every change reads the records it depends on, computes the new ones and
// writes them on condition that the revisions read are still the current ones
// (optimistic concurrency). When the condition fails it starts over with a fresh
// read. A reply that was lost is handled in the same way: the fresh read shows
// whether the change was made. Commit and abort of a move are therefore safe to
// ask for again at any time and by anybody; whichever was first is the answer.
//
// Every operation is bounded in time and reports pod.ErrUnavailable, with the
// endpoints, when etcd can't be reached.
package directory
