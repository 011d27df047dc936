package pod

import (
	"net/netip"
	"time"
)

// Host is the directory's record of one host. It exists for as long as the
// host has joined; whether the host is alive is known by its lease.
type Host struct {
	Name string `json:"name"`
	// Physical is the host's address on its own subnet: the outer address
	// of its labelled packets.
	Physical netip.Addr `json:"physical"`
	// API is the address and port other daemons reach podd at.
	API netip.AddrPort `json:"api"`
	// Issuer says that the daemon has the cluster's certificate authority.
	Issuer bool `json:"issuer,omitempty"`
	// Kernel is the release, CRIU the version as MMmmss (40201 is 4.2.1),
	// 0 when there is none; CPU the model name.
	Kernel string `json:"kernel"`
	CRIU   int    `json:"criu"`
	CPU    string `json:"cpu"`
	// Version is podd's own.
	Version string `json:"version"`
	// MemoryBytes and CPUs are what the machine has.
	MemoryBytes int64 `json:"memoryBytes"`
	CPUs        int   `json:"cpus"`
	// MaxMoves bounds the moves out of and into it at a time; 0 means
	// DefaultMaxMoves.
	MaxMoves  int       `json:"maxMoves,omitempty"`
	StartedAt time.Time `json:"startedAt"`
	// Alive is true while the host's lease lasts. It is not stored.
	Alive bool `json:"-"`
}

// Proxy is the directory's record of the session proxy.
type Proxy struct {
	Name string `json:"name"`
	// Physical is the outer address of labelled packets at the proxy.
	Physical netip.Addr `json:"physical"`
	// API is the address and port daemons reach podproxy at.
	API netip.AddrPort `json:"api"`
	// Issuer is as a host's.
	Issuer bool `json:"issuer,omitempty"`
	// Zone is the DNS zone pods are named in, without a trailing dot.
	Zone string `json:"zone"`
	// PublicPrefix is paired 1:1 with VirtualPrefix.
	PublicPrefix  netip.Prefix `json:"publicPrefix"`
	VirtualPrefix netip.Prefix `json:"virtualPrefix"`
	Version       string       `json:"version"`
	Alive         bool         `json:"-"`
}

// Gateway is the address of the proxy as every pod sees it: the default route
// and the name server. It is link-local, so it means the same on any host.
var Gateway = netip.MustParseAddr("169.254.1.1")
