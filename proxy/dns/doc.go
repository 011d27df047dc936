// Package dns is the authoritative name server of the pods' zone, answering from
// a view of the directory: a pod's public address to clients, its virtual one to
// pods. For pods it is also the way to all other names, which it forwards.
//
// # What is served
//
//	ZONE              SOA, NS
//	POD.ZONE          A: public to clients, virtual to pods
//	ns.dns.ZONE       A: the proxy's address to clients, the gateway to pods.
//	                  A pod's name has no dot, so none can be in the way.
//	*.in-addr.arpa    PTR of every pod's public and virtual address
//
// Anything else in these zones is NXDOMAIN, another type at a name that exists
// NODATA, both with the SOA (RFC 2308). The serial is the directory's revision,
// so it moves with every change. Records live five seconds: a name may be given
// to another pod, and a pod's addresses never change.
//
// Names outside are REFUSED to clients. For pods they are forwarded to the
// configured upstreams in turn, over the transport the pod used; if there is
// none, or none answers, the pod gets SERVFAIL, which its resolver reports as a
// temporary failure. Nothing is cached.
//
// Whether a query is a pod's is told by its source address: the data path lets
// in no packet with a virtual source address but from that pod.
package dns
