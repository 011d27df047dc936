package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/bench/measure"
	"podd/bench/traffic"
)

// atATime is how many commands make many servers.
const atATime = 4

// firstPort is where many servers that share an address begin to listen.
const firstPort = 10000

// many measures many servers at the same time.
func (c *creator) many(ctx context.Context, m maker) (_ measure.Values, err error) {
	ids := make([]string, manyPods)
	ports := make([]uint16, manyPods)
	for i := range ids {
		ids[i], ports[i] = fmt.Sprintf("many-%d", i), traffic.Port
		if m.name() == runc {
			ports[i] = uint16(firstPort + i*traffic.Ports)
		}
		if err := m.prepare(ctx, ids[i], ports[i]); err != nil {
			return nil, err
		}
	}
	before, err := c.memory(m)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.remove(context.WithoutCancel(ctx), ids...), reapOrphans()) }()
	begin := time.Now()
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(atATime)
	for i, id := range ids {
		group.Go(func() error { return m.run(running, id, ports[i]) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	answered := 0
	for i, id := range ids {
		var address netip.AddrPort
		if address, err = m.address(ctx, id, ports[i]); err == nil {
			err = c.answers(ctx, address)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, after %d have answered: %w", id, answered, err)
		}
		answered++
	}
	after, err := c.memory(m)
	if err != nil {
		return nil, err
	}
	each := func(before, after float64) float64 { return (after - before) / manyPods }
	values := measure.Values{
		creating: milliseconds(took), answering: float64(answered),
		kernelPod: each(before.kernel, after.kernel), processPod: each(before.processes, after.processes),
		machinePod: each(after.available, before.available),
	}
	if len(after.daemons) > 0 {
		values[daemonTotal] = after.daemons[0]
		values[daemonPod] = 0
		for i := range after.daemons {
			values[daemonPod] += each(before.daemons[i], after.daemons[i])
		}
	}
	return values, nil
}

// memory is what uses memory, in bytes.
type memory struct {
	kernel, available, processes float64
	daemons                      []float64
}

func (c *creator) memory(m maker) (memory, error) {
	info, err := memoryInfo()
	if err != nil {
		return memory{}, err
	}
	use := memory{kernel: info.kernel(), available: info["MemAvailable"]}
	daemons, err := m.daemons()
	if err != nil {
		return memory{}, err
	}
	for _, pid := range daemons {
		size, err := proportional(pid)
		if err != nil {
			return memory{}, err
		}
		use.daemons = append(use.daemons, size)
	}
	pids, err := processesIn(m.parent())
	if err != nil {
		return memory{}, err
	}
	for _, pid := range pids {
		size, err := proportional(pid)
		if err != nil {
			return memory{}, err
		}
		use.processes += size
	}
	return use, nil
}

// meminfo is /proc/meminfo in bytes.
type meminfo map[string]float64

func memoryInfo() (meminfo, error) { return readSizes("/proc/meminfo") }

// kernel is what the kernel uses for itself.
func (m meminfo) kernel() float64 {
	return m["Slab"] + m["KernelStack"] + m["PageTables"] + m["Percpu"] + m["VmallocUsed"]
}

// proportional is the proportional set size of a process: what it alone has in
// memory, and its share of what others have too.
func proportional(pid int) (float64, error) {
	sizes, err := readSizes(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	return sizes["Pss"], err
}

// readSizes reads a file of lines like "Name:  123 kB".
func readSizes(path string) (meminfo, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("measuring memory: %w", err)
	}
	sizes := meminfo{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		n, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return nil, fmt.Errorf("measuring memory: %s: %q: %w", path, lines.Text(), err)
		}
		sizes[strings.TrimSuffix(fields[0], ":")] = n * 1024
	}
	return sizes, lines.Err()
}

// processesIn lists the processes in all cgroups beneath one of the root's.
func processesIn(parent string) ([]int, error) {
	root := filepath.Join("/sys/fs/cgroup/pids", parent)
	if _, err := os.Stat("/sys/fs/cgroup/pids"); errors.Is(err, fs.ErrNotExist) { // version 2
		root = filepath.Join("/sys/fs/cgroup", parent)
	}
	var pids []int
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the processes of %s: %w", parent, err)
	}
	return pids, nil
}

// reapOrphans reaps the processes that commands have left to this one, once no
// command runs any more.
func reapOrphans() error {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err == unix.ECHILD, err == nil && pid == 0:
			return nil
		case err != nil:
			return fmt.Errorf("reaping processes: %w", err)
		}
	}
}
