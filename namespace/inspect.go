package namespace

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"podd/namespace/image"
	"podd/procfs"
)

// Image is what the container's image was when the container was made.
func (c *Container) Image() image.Image { return c.record.Image }

// Layers are the read-only directories below the writable one, topmost first.
func (c *Container) Layers() []string { return Layers(c.record.Image) }

// Layers are the directories of an image on this host, topmost first.
func Layers(img image.Image) []string {
	if img.Name == image.HostName {
		return []string{"/"}
	}
	return img.Layers
}

// Usage is what a running pod takes.
type Usage struct {
	Processes int
	// MemoryBytes is the memory that is the processes' own, in bytes:
	// anonymous and shared memory, not cached files.
	MemoryBytes int64
}

// Usage counts what the pod takes now.
func (c *Container) Usage() (Usage, error) {
	pids, err := c.pids()
	if err != nil {
		return Usage{}, err
	}
	usage := Usage{Processes: len(pids)}
	for _, pid := range pids {
		size, err := ownMemory(pid)
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return Usage{}, fmt.Errorf("measuring process %d: %w", pid, err)
		}
		usage.MemoryBytes += size
	}
	return usage, nil
}

// pids are the pod's processes as this host numbers them.
func (c *Container) pids() ([]int, error) {
	m, err := c.cgroup()
	if err != nil {
		return nil, err
	}
	pids, err := m.GetAllPids()
	if err != nil {
		return nil, fmt.Errorf("listing the processes of %s: %w", c.id, err)
	}
	return pids, nil
}

// ownMemory adds up RssAnon and RssShmem of proc_pid_status(5), in bytes.
// Memory that processes share counts once for each.
func ownMemory(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var total int64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if key == "RssAnon" || key == "RssShmem" {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, err
			}
			total += kib << 10
		}
	}
	return total, lines.Err()
}

// MappedFiles are the paths in the pod of the files that its processes have
// mapped, programs and libraries above all.
func (c *Container) MappedFiles() ([]string, error) {
	pids, err := c.pids()
	if err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for _, pid := range pids {
		if err := mappedFiles(pid, paths); err != nil && !procfs.Gone(err) {
			return nil, fmt.Errorf("reading the mappings of process %d: %w", pid, err)
		}
	}
	list := make([]string, 0, len(paths))
	for path := range paths {
		list = append(list, path)
	}
	slices.Sort(list)
	return list, nil
}

func mappedFiles(pid int, paths map[string]bool) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Address, permissions, offset, device, inode; then the path, which
		// may hold spaces.
		i := strings.IndexByte(lines.Text(), '/')
		if i < 0 {
			continue
		}
		path := lines.Text()[i:]
		if !strings.HasSuffix(path, " (deleted)") {
			paths[filepath.Clean(path)] = true
		}
	}
	return lines.Err()
}
