package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sysctl is a kernel parameter and its value. The name is written with
// slashes, because device names may contain dots: "net/ipv4/ip_forward".
type Sysctl struct {
	Name, Value string
	// Optional parameters are skipped on kernels built without them.
	Optional bool
}

// SetSysctls writes parameters of the calling thread's network namespace,
// leaving alone those that already have the value.
func SetSysctls(parameters ...Sysctl) error {
	for _, p := range parameters {
		now, err := GetSysctl(p.Name)
		if p.Optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if now == p.Value {
			continue
		}
		if err := os.WriteFile(sysctlPath(p.Name), []byte(p.Value), 0); err != nil {
			return fmt.Errorf("setting sysctl %s to %s: %w", p.Name, p.Value, err)
		}
	}
	return nil
}

// GetSysctl reads a parameter of the calling thread's network namespace.
// Several numbers are separated by one space each. The error wraps
// fs.ErrNotExist when the kernel has no such parameter.
func GetSysctl(name string) (string, error) {
	value, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("reading sysctl %s: %w", name, err)
	}
	return strings.Join(strings.Fields(string(value)), " "), nil
}

func sysctlPath(name string) string { return filepath.Join("/proc/sys", name) }
