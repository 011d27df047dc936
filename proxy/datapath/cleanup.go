package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"podd/vnet/vxlan"
)

// cleanupBatch is how many devices Cleanup deletes at once: nobody waits for
// the kernel in between.
const cleanupBatch = 100

// Cleanup removes everything a Datapath has ever made: rules, sets, devices,
// routes, and the gateway address. Connections through the proxy
// end. The datapath must be closed. It goes on after a failure.
func Cleanup(config Config, log *slog.Logger) error {
	if err := config.complete(); err != nil {
		return fmt.Errorf("cleaning up datapath: %w", err)
	}
	k, err := dialKernel(config)
	if err != nil {
		return fmt.Errorf("cleaning up datapath: %w", err)
	}
	defer k.close()
	d := &Datapath{config: config, log: log, kernel: k, reaper: newReaper()}
	failures := []error{d.adopt()}
	var devices []*device
	for _, dev := range d.devices {
		devices = append(devices, dev)
	}
	for batch := range slices.Chunk(devices, cleanupBatch) {
		failures = append(failures, k.removeDevices(batch...))
	}
	failures = append(failures, k.removeUnreachable(nil), vxlan.RemoveAnchor(k.conn), ruleOwner.Remove(rules(config)), k.removeSets())
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("cleaning up datapath: %w", err)
	}
	return nil
}
