package procfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Memory returns how much memory the machine has and how much programs can still
// take, in bytes: MemTotal and MemAvailable of proc_meminfo(5).
func Memory() (total, available int64, err error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			available = kib << 10
		} else if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kib); n == 1 {
			total = kib << 10
		}
		if total > 0 && available > 0 {
			return total, available, nil
		}
	}
	return 0, 0, errors.New("/proc/meminfo has no MemAvailable or no MemTotal")
}
