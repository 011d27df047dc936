package namespace

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"podd/namespace/image"
	"podd/procfs"
)

// record is what container.json holds.
type record struct {
	Config Config `json:"config"`
	// Image is what the name of the image meant when the container was made.
	Image     image.Image `json:"image"`
	CreatedAt time.Time   `json:"createdAt"`
	// Process is the pod's init, nil before there is one.
	Process *process `json:"process,omitempty"`
}

// process identifies a process for good: PIDs are used again, but not with the
// same start time in the same boot.
type process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"startTime"`
	// Boot is the kernel's random boot_id.
	Boot string `json:"boot"`
}

func (c *Container) readRecord() error {
	data, err := os.ReadFile(c.paths.record)
	if err != nil {
		return fmt.Errorf("reading the container's record: %w", err)
	}
	if err := json.Unmarshal(data, &c.record); err != nil {
		return fmt.Errorf("reading the container's record %s: %w", c.paths.record, err)
	}
	if id := ID(c.record.Config.Spec.Name, c.record.Config.Epoch); id != c.id {
		return fmt.Errorf("the container's record %s is about %s", c.paths.record, id)
	}
	return nil
}

// writeRecord replaces the record, for whoever reads it from now on. It is on the
// disk, for after a failure of the machine, when durable has returned, which has
// to be called and may be while other things are done.
func (c *Container) writeRecord() (durable func() error, err error) {
	fail := func(err error) (func() error, error) {
		return nil, fmt.Errorf("writing the container's record: %w", err)
	}
	data, err := json.MarshalIndent(c.record, "", "\t")
	if err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(c.paths.state, "container.json.*") // mode 0600
	if err != nil {
		return fail(err)
	}
	if _, err = f.Write(append(data, '\n')); err == nil {
		err = os.Rename(f.Name(), c.paths.record)
	}
	if err != nil {
		return fail(errors.Join(err, f.Close(), os.Remove(f.Name())))
	}
	return func() error {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("writing the container's record: %w", err)
		}
		return nil
	}, nil
}

// identify reads what tells the process apart from later ones with its PID.
func identify(pid int) (*process, error) {
	stat, err := procfs.ReadStat(pid)
	if err != nil {
		return nil, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return &process{PID: pid, StartTime: stat.Start, Boot: boot}, nil
}

// exists reports whether the process is still there, perhaps as a zombie.
func (p *process) exists() (bool, error) {
	if p == nil {
		return false, nil
	}
	now, err := identify(p.PID)
	switch {
	case procfs.Gone(err): // also in the middle of looking
		return false, nil
	case err != nil:
		return false, err
	}
	return *now == *p, nil
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
