package directory

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"podd/pod"
)

const (
	root           = "/podd/"
	clusterKey     = root + "cluster"
	allocatorKey   = root + "allocator"
	hostPrefix     = root + "hosts/"
	proxyPrefix    = root + "proxies/"
	hostAlive      = root + "alive/hosts/"
	proxyAlive     = root + "alive/proxies/"
	podPrefix      = root + "pods/"
	movePrefix     = root + "moves/"
	addressPrefix  = root + "addresses/"
	addressKeyForm = addressPrefix + "%08x" // fixed width: keys sort as offsets do
)

// Cluster is what all pods of a cluster have in common. It is written once,
// because every address given out depends on it.
type Cluster struct {
	// Public and Virtual have the same length and are paired 1:1.
	Public  netip.Prefix `json:"public"`
	Virtual netip.Prefix `json:"virtual"`
	// Zone is the DNS zone of the pods' names, lower case, without a
	// trailing dot.
	Zone string `json:"zone"`
}

// Validate checks that the prefixes can be paired and that the zone is a domain
// name; it removes host bits, upper case and a trailing dot. The error wraps
// pod.ErrInvalid.
func (c *Cluster) Validate() error {
	for what, p := range map[string]*netip.Prefix{"public": &c.Public, "virtual": &c.Virtual} {
		const widest, narrowest = 8, 30
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("%w: %s prefix %s: want an IPv4 prefix such as 198.18.0.0/16", pod.ErrInvalid, what, p)
		}
		if p.Bits() < widest || p.Bits() > narrowest {
			return fmt.Errorf("%w: %s prefix %s: want a length from /%d to /%d", pod.ErrInvalid, what, p, widest, narrowest)
		}
		*p = p.Masked()
		if p.Contains(pod.Gateway) {
			return fmt.Errorf("%w: %s prefix %s contains the pods' gateway %s", pod.ErrInvalid, what, p, pod.Gateway)
		}
	}
	if c.Public.Bits() != c.Virtual.Bits() {
		return fmt.Errorf("%w: public prefix %s and virtual prefix %s differ in length, but they are paired address by address", pod.ErrInvalid, c.Public, c.Virtual)
	}
	if c.Public.Overlaps(c.Virtual) {
		return fmt.Errorf("%w: public prefix %s and virtual prefix %s overlap", pod.ErrInvalid, c.Public, c.Virtual)
	}
	c.Zone = strings.TrimSuffix(strings.ToLower(c.Zone), ".")
	const maxZone = 253 - pod.MaxNameLength - 1 // room for a pod's name in front (RFC 1035, section 2.3.4)
	if c.Zone == "" || len(c.Zone) > maxZone {
		return fmt.Errorf("%w: zone %q: want a domain name of at most %d characters", pod.ErrInvalid, c.Zone, maxZone)
	}
	for label := range strings.SplitSeq(c.Zone, ".") {
		if err := pod.ValidateName(label); err != nil {
			return fmt.Errorf("zone %q: %w", c.Zone, err)
		}
	}
	return nil
}

// addresses gives the pair of addresses at offset in the prefixes.
func (c *Cluster) addresses(offset uint32) (public, virtual netip.Addr) {
	return addrAt(c.Public, offset), addrAt(c.Virtual, offset)
}

func addrAt(p netip.Prefix, offset uint32) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+offset)
	return netip.AddrFrom4(b)
}

// offsetOf is the inverse of addrAt for an address in p.
func offsetOf(p netip.Prefix, a netip.Addr) uint32 {
	base, b := p.Addr().As4(), a.As4()
	return binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])
}

// size is the number of addresses in each prefix.
func (c *Cluster) size() uint32 { return 1 << (32 - c.Virtual.Bits()) }

// usable reports whether a pod may have the address at offset: not the network
// and broadcast addresses, nor any that looks like one (.0 and .255, which some
// clients refuse), nor the first, by habit a router's.
func (c *Cluster) usable(offset uint32) bool {
	if offset <= 1 || offset >= c.size()-1 {
		return false
	}
	for _, p := range []netip.Prefix{c.Public, c.Virtual} {
		if last := addrAt(p, offset).As4()[3]; last == 0 || last == 255 {
			return false
		}
	}
	return true
}

// InitCluster writes the cluster's configuration if there is none yet. If there
// is one and it differs, the error wraps pod.ErrConflict.
func (d *Directory) InitCluster(ctx context.Context, c Cluster) error {
	const what = "initializing the cluster"
	if err := c.Validate(); err != nil {
		return err
	}
	return d.retry(ctx, what, func(ctx context.Context) error {
		kvs, err := d.read(ctx, clusterKey)
		if err != nil {
			return err
		}
		if kvs[0] == nil {
			return d.write(ctx, one(unchanged(clusterKey, nil)), put(clusterKey, c))
		}
		have, err := decode[Cluster](kvs[0])
		if err != nil {
			return err
		}
		if *have != c {
			return fmt.Errorf("%w: the directory was made for public prefix %s, virtual prefix %s, zone %s; asked for %s, %s, %s",
				pod.ErrConflict, have.Public, have.Virtual, have.Zone, c.Public, c.Virtual, c.Zone)
		}
		return nil
	})
}

// Cluster reads the configuration. The error wraps pod.ErrUnavailable when no
// proxy has written one yet.
func (d *Directory) Cluster(ctx context.Context) (*Cluster, error) {
	const what = "reading the cluster's configuration"
	resp, err := d.get(ctx, what, clusterKey)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("%s: %w", what, errNoCluster)
	}
	c, err := decode[Cluster](resp.Kvs[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return c, nil
}

var errNoCluster = fmt.Errorf("%w: no proxy has joined this directory yet", pod.ErrUnavailable)
