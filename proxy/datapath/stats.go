package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// Stats is what the datapath counts, for metrics.
type Stats struct {
	// Pods have a path; Held are those whose packets are queued, and since when.
	Pods int
	Held map[netip.Addr]time.Time
	// Devices includes Superseded ones, which are about to be deleted.
	Devices, Superseded int
	Hosts               int
	// Switches are the paths that have been changed from one label to another,
	// Changes all changes made in the kernel, both since Open.
	Switches, Changes uint64
}

// Stats returns the current numbers. How much is queued for a held pod is not
// among them: the kernel doesn't tell.
func (d *Datapath) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Stats{
		Pods: len(d.paths), Held: maps.Clone(d.held),
		Devices: len(d.devices) + len(d.reaper.deleting), Superseded: len(d.reaper.doomed) + len(d.reaper.deleting),
		Hosts: len(d.hosts), Switches: d.switches, Changes: d.kernel.changes.Load(),
	}
}

// CountRules returns how many iptables rules the proxy has, as iptables sees
// it. It runs iptables, so it takes some 50 ms and must run on a thread of the
// proxy's network namespace.
func (d *Datapath) CountRules() (int, error) {
	n, err := ruleOwner.Count(rules(d.config))
	if err != nil {
		return 0, fmt.Errorf("counting iptables rules: %w", err)
	}
	return n, nil
}
