package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
)

// Rename gives a pod that was prepared with Restore, and whose files have come
// from one of another name or address, its own in /etc/hostname and /etc/hosts.
// It comes after Mount and before there are processes. old is the address that
// the files may have; other lines are left as they are.
func (c *Container) Rename(old netip.Addr) error {
	hosts, err := c.readFile("/etc/hosts", maxEtcFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("renaming the pod: %w", err)
	}
	root, err := openDir(c.paths.rootfs)
	if err != nil {
		return fmt.Errorf("renaming the pod: %w", err)
	}
	defer root.Close()
	config := c.record.Config
	for _, f := range []file{
		{"/etc/hostname", []byte(config.Spec.Name + "\n"), 0o644},
		{"/etc/hosts", renameHosts(hosts, old, config), 0o644},
	} {
		if err := f.write(root); err != nil {
			return fmt.Errorf("renaming the pod: writing %s: %w", f.path, err)
		}
	}
	return nil
}

// renameHosts puts the pod's own line in the place of those of the old address.
func renameHosts(hosts []byte, old netip.Addr, config Config) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(string(hosts)) {
		if fields := strings.Fields(line); len(fields) == 0 || fields[0] != old.String() {
			out.WriteString(line)
		}
	}
	if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "%s\t%s\n", config.Address, ownNames(config))
	return out.Bytes()
}
