//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/lab"
)

// A pod goes round the hosts twenty times while clients use it. Afterwards
// there is not one thing more on any host or the proxy than before.
func TestDrift(t *testing.T) {
	server := newPython(t, "", "wanderer", 7000)
	address := server.awaitPort(7000)
	server.shell("mkdir /var/tmp/files && head -c 3000000 /dev/urandom > /var/tmp/files/data")
	busy := keepAsking(t, address, countedBy("wanderer"))
	// Every connection is used and closed before the next: connections that
	// come faster than the program accepts them are another matter.
	fresh := keepDoing(t, func(n int) error {
		conn, err := theLab.Dial(t.Context(), lab.Client, "tcp", address)
		if err != nil {
			return err
		}
		c := &lineConn{conn: conn, reader: bufio.NewReader(conn)}
		reply, err := c.roundTrip("hello")
		if want := "wanderer 1 hello"; err == nil && reply != want {
			err = fmt.Errorf("reply %q; want %q", reply, want)
		}
		err = errors.Join(err, conn.Close())
		if errors.Is(err, syscall.ECONNRESET) {
			// Its handshake was half done when the packets were held: the
			// kernel can't read such a connection out (docs/limits.md).
			return nil
		}
		return err
	})
	// The first round fills what is filled once: caches, pools, journals.
	round := func() {
		for _, target := range []string{"b", "c", "a"} {
			server.move(target)
		}
	}
	round()
	// The proxy deletes old devices a moment after a move, also those of the
	// tests before this one.
	until(t, "the proxy has the device of one pod", func() error {
		links := inNode(t, lab.Proxy, "ip", "-o", "link", "show", "type", "vxlan")
		if n := strings.Count(links, ": label"); n != 1 {
			return fmt.Errorf("%d devices:\n%s", n, links)
		}
		return nil
	})
	before := takeInventory(t)
	for range 7 { // 21 moves
		round()
	}
	// What goes a moment after a move, such as the proxy's old devices, may
	// take its time; it must not stay.
	var grown []string
	until(t, "everything is as it was before twenty moves", func() error {
		if grown = takeInventory(t).beyond(before); len(grown) > 0 {
			return fmt.Errorf("drift:\n%s", strings.Join(grown, "\n"))
		}
		return nil
	})
	busy.stop()
	fresh.stop()
}

// inventory is what there is, by kind and place: a number, and for kinds whose
// number says little, how much more is still none too many.
type inventory map[string]amount

type amount struct {
	value, tolerance int64
	// example lists the things, for kinds where they have names.
	example []string
}

// beyond describes what has become more, or less, since before.
func (i inventory) beyond(before inventory) []string {
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(i)) {
		now, then := i[what], before[what]
		if now.value > then.value+then.tolerance || now.value < then.value && then.tolerance == 0 {
			line := fmt.Sprintf("  %s: %d, before %d", what, now.value, then.value)
			// Two incarnations of a pod have the same names here.
			more := map[string]int{}
			for _, thing := range now.example {
				more[thing]++
			}
			for _, thing := range then.example {
				more[thing]--
			}
			for _, thing := range slices.Sorted(maps.Keys(more)) {
				if more[thing] > 0 {
					line += fmt.Sprintf("\n    + %s (%d)", thing, more[thing])
				}
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// takeInventory counts everything a move makes on its way, on every node.
func takeInventory(t *testing.T) inventory {
	t.Helper()
	all := inventory{}
	for _, node := range theLab.Daemons() {
		for _, list := range []struct {
			what string
			argv []string
		}{
			{"network devices", []string{"ip", "-o", "link", "show"}},
			{"routes", []string{"ip", "route", "show", "table", "all"}},
			{"routing rules", []string{"ip", "rule", "show"}},
			{"neighbours", []string{"ip", "neigh", "show", "nud", "permanent"}},
			{"forwarding entries", []string{"bridge", "fdb", "show"}},
			{"iptables rules", []string{"iptables-save"}},
			{"ipset entries", []string{"ipset", "save"}},
		} {
			all.lines(node+": "+list.what, inNode(t, node, list.argv...))
		}
		all.process(t, node)
		all.files(t, node)
	}
	all.machine(t)
	return all
}

// lines counts the lines of a listing.
func (i inventory) lines(what, text string) {
	things := strings.Split(strings.TrimSpace(text), "\n")
	i[what] = amount{value: int64(len(things)), example: things}
}

// process counts what a node's daemon has.
func (i inventory) process(t *testing.T, node string) {
	t.Helper()
	pid, err := theLab.PID(node)
	if err != nil || pid == 0 {
		t.Fatalf("the daemon of node %s: process %d, %v", node, pid, err)
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	entries, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	open := amount{value: int64(len(entries))}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(proc, "fd", e.Name())); err == nil {
			kind, _, _ := strings.Cut(target, "[") // without the inode of a socket
			open.example = append(open.example, kind)
		}
	}
	// Connections between the daemons come and go by themselves, a handful.
	open.tolerance = 6
	i[node+": descriptors of the daemon"] = open

	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	// The Go runtime keeps a thread for as many system calls as ever blocked
	// at once.
	i[node+": threads of the daemon"] = amount{value: field(t, status, "Threads:"), tolerance: 8}
	// The garbage collector's heap breathes by as much as a move allocates;
	// twenty moves that each left 1 MiB would be beyond this.
	i[node+": memory of the daemon, KiB"] = amount{value: field(t, status, "VmRSS:"), tolerance: 20 << 10}
	children, err := os.ReadFile(filepath.Join(proc, "task", strconv.Itoa(pid), "children"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	i[node+": children of the daemon's main thread"] = amount{value: int64(len(strings.Fields(string(children))))}
}

func field(t *testing.T, status []byte, name string) int64 {
	t.Helper()
	for line := range bytes.Lines(status) {
		if fields := strings.Fields(string(line)); len(fields) > 1 && fields[0] == name {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in a process's status", name)
	return 0
}

// files counts files in a daemon's directories and the space they take.
func (i inventory) files(t *testing.T, node string) {
	t.Helper()
	// The wandering pod itself is always at home when this is asked, so what
	// it has is the same each time. The directory's own files grow with its
	// journal, which has a bound of its own.
	for name, dir := range map[string]string{"state": theLab.StateDir(node), "run": theLab.RunDir(node)} {
		var found []string
		var blocks int64
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EACCES):
				return nil
			case err != nil:
				return err
			case entry.IsDir() && (entry.Name() == "directory" || entry.Name() == "rootfs"):
				return fs.SkipDir
			case strings.Contains(path, "/upper/var/lib/podd-"):
				// It covers what another run of podd's programs on this machine has
				// there, which is hidden from pods as all private directories are.
				if entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			info, err := entry.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			blocks += info.Sys().(*syscall.Stat_t).Blocks
			relative, _ := filepath.Rel(dir, path)
			found = append(found, withoutEpoch(relative))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		i[node+": files in the "+name+" directory"] = amount{value: int64(len(found)), example: found}
		// Directories and logs of the pod differ by a block or two.
		i[node+": space in the "+name+" directory, KiB"] = amount{value: blocks / 2, tolerance: 256}
	}
	if node == lab.Proxy {
		return
	}
	var images unix.Statfs_t
	if err := unix.Statfs(filepath.Join(theLab.RunDir(node), "checkpoint"), &images); err != nil {
		t.Fatal(err)
	}
	i[node+": space taken by images, KiB"] = amount{value: int64(images.Blocks-images.Bfree) * images.Bsize >> 10}
}

// withoutEpoch cuts the number of the incarnation off the names of a pod's
// directories: NAME.EPOCH, and NAME-EPOCH for network namespaces.
func withoutEpoch(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if n := strings.LastIndexAny(part, ".-"); n > 0 && strings.Trim(part[n+1:], "0123456789") == "" {
			parts[i] = part[:n]
		}
	}
	return strings.Join(parts, "/")
}

// machine counts what all nodes share a kernel for.
func (i inventory) machine(t *testing.T) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, lab.RunDir+"/") || strings.HasPrefix(m.Mountpoint, theLab.Dir+"/") {
			points = append(points, withoutEpoch(m.Mountpoint))
		}
	}
	i["mounts"] = amount{value: int64(len(points)), example: points}

	var groups []string
	processes := map[string]bool{} // of pods, by number
	for _, node := range theLab.HostNames() {
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
			tops, err := filepath.Glob(fmt.Sprintf(pattern, theLab.CgroupParent(node)))
			if err != nil {
				t.Fatal(err)
			}
			for _, top := range tops {
				err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
					if err == nil && entry.IsDir() {
						groups = append(groups, withoutEpoch(path))
						// It may be gone.
						list, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
						for _, pid := range strings.Fields(string(list)) {
							processes[pid] = true
						}
					}
					if errors.Is(err, fs.ErrNotExist) {
						err = nil
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	i["cgroups"] = amount{value: int64(len(groups)), example: groups}

	// Kept by a mount, a process or a socket: the kernel lists them all, also of
	// pods that are none of the lab's.
	ofPod := func(line string) bool {
		pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		return processes[pid] && strings.Contains(command, "/.podd/")
	}
	var own []string
	for line := range strings.Lines(namespaces(t, "net", "PID,NS,COMMAND,NSFS")) {
		if strings.Contains(line, lab.RunDir) || ofPod(line) {
			own = append(own, line)
		}
	}
	i["network namespaces of pods"] = amount{value: int64(len(own)), example: own}
	for _, kind := range []string{"mnt", "pid", "ipc", "uts"} {
		pods := 0
		for line := range strings.Lines(namespaces(t, kind, "PID,COMMAND")) {
			if ofPod(line) {
				pods++
			}
		}
		i[kind+" namespaces of pods"] = amount{value: int64(pods)}
	}
}

// namespaces lists the machine's namespaces of a kind, with these columns.
func namespaces(t *testing.T, kind, columns string) (text string) {
	t.Helper()
	// lsns fails when a process ends while it looks at it, whoever's it is.
	until(t, "the namespaces can be listed", func() error {
		out, err := exec.Command("lsns", "-n", "-t", kind, "-o", columns).Output()
		text = string(out)
		return err
	})
	return text
}
