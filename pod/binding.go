package pod

import (
	"fmt"
	"net/netip"
)

// Label is the VXLAN network identifier (RFC 7348, section 5) that marks every
// packet between the proxy and one incarnation of one pod. Every incarnation
// (creation, each move, each restore) gets a new one, so the packets of a
// superseded copy carry a label that nobody listens to.
type Label uint32

// Labels are 24 bits wide. 0 is not used; the highest is kept for the anchor
// device that every host has up, so that a packet with an old label meets
// silence and not an ICMP error.
const (
	MinLabel    Label = 1
	MaxLabel    Label = 1<<24 - 2
	AnchorLabel Label = 1<<24 - 1
)

func (l Label) String() string { return fmt.Sprintf("%d", uint32(l)) }

// Epoch numbers the incarnations of a pod, from 1; attempts that came to nothing
// leave gaps. Only the directory raises it, and only by compare-and-swap, so at
// most one holder of an epoch exists.
type Epoch uint64

// Binding says where the current incarnation of a pod is. The directory holds
// the only authoritative one.
type Binding struct {
	// Virtual is the pod's own address for life; processes in it see no other.
	Virtual netip.Addr `json:"virtual"`
	// Public is what clients connect to; the proxy maps it 1:1 to Virtual.
	Public netip.Addr `json:"public"`
	// Host is the name of the host the pod is on.
	Host string `json:"host"`
	// Physical is that host's address on its own subnet.
	Physical netip.Addr `json:"physical"`
	// Label marks this incarnation's packets.
	Label Label `json:"label"`
	// Epoch numbers this incarnation.
	Epoch Epoch `json:"epoch"`
}
