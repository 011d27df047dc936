package datapath

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"podd/pod"
)

// devicePrefix begins the name of every labelled device; the label follows.
const devicePrefix = "label"

func deviceName(label pod.Label) string { return devicePrefix + label.String() }

// parseDeviceName returns the label in a device's name, and whether it is one
// of ours.
func parseDeviceName(name string) (pod.Label, bool) {
	digits, ok := strings.CutPrefix(name, devicePrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 24)
	label := pod.Label(n)
	return label, err == nil && label.String() == digits && label >= pod.MinLabel && label <= pod.MaxLabel
}

type neighborState int

const (
	neighborNone neighborState = iota
	neighborHeld
	neighborOpen
)

// device is one labelled device as it is in the kernel.
type device struct {
	label  pod.Label
	index  int
	remote netip.Addr
	// configured is false for a device an earlier proxy has left, until it is
	// wanted.
	configured bool
	// virtual is the one address that has a neighbour entry, and neighbor the
	// state of it.
	virtual  netip.Addr
	neighbor neighborState
	// detoured is true while what is sent to the pod waits beside its queue.
	detoured bool
	// redirect is the forwarding entry of a device that has been superseded.
	redirect redirect
}

// redirect sends with another label to another host. A label of 0 is none.
type redirect struct {
	label  pod.Label
	remote netip.Addr
}

// ensureDevice returns the device of a binding, up and configured, and with it
// says that it is wanted.
func (d *Datapath) ensureDevice(virtual netip.Addr, b pod.Binding) (*device, error) {
	if dev := d.devices[b.Label]; dev != nil && dev.remote != b.Physical {
		// A label belongs to one incarnation on one host. That this one
		// doesn't is somebody else's mistake, but ours to get over.
		d.log.Warn("label has changed its host", "label", b.Label, "from", dev.remote, "to", b.Physical)
		if err := d.kernel.removeDevices(dev); err != nil {
			return nil, err
		}
		d.forget(dev)
	}
	dev := d.devices[b.Label]
	if dev == nil {
		if d.reaper.deleting[b.Label] {
			return nil, fmt.Errorf("%w: label %s is being deleted", pod.ErrConflict, b.Label)
		}
		var err error
		if dev, err = d.kernel.createDevice(b); err != nil {
			return nil, err
		}
		d.devices[b.Label] = dev
	}
	if dev.virtual.IsValid() && dev.virtual != virtual && d.claimed(dev) {
		return nil, fmt.Errorf("%w: label %s belongs to pod %s", pod.ErrConflict, b.Label, dev.virtual)
	}
	delete(d.unclaimed, dev.label)
	d.reaper.spare(dev)
	if dev.configured {
		return dev, nil
	}
	return dev, d.kernel.configureDevice(dev)
}

// claimed reports whether the pod whose neighbour the device has uses it.
func (d *Datapath) claimed(dev *device) bool {
	p := d.paths[dev.virtual]
	return p != nil && (p.current == dev || p.next == dev)
}

// doom gives a device that is no longer wanted to the reaper.
func (d *Datapath) doom(dev *device) error {
	delete(d.unclaimed, dev.label)
	d.reaper.add(dev, d.config.Linger)
	if dev.neighbor == neighborHeld && dev.redirect.label != 0 {
		// Left by a proxy that died while it released: the queue can go.
		return d.setNeighbor(dev, dev.virtual, false)
	}
	return nil
}

// forget removes a device that is gone from the model.
func (d *Datapath) forget(dev *device) {
	delete(d.unclaimed, dev.label)
	delete(d.devices, dev.label)
	for _, p := range d.paths {
		if p.current == dev {
			p.current = nil
		}
		if p.next == dev {
			p.next = nil
		}
	}
}
