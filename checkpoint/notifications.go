package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dropNotifications takes out of the netlink sockets of a frozen pod what the
// kernel has told everybody who listens: CRIU dumps no netlink socket with
// messages in it, and blocking the network makes some (a browser, for one,
// listens to changes of neighbours). They tell of things of this host. An answer
// to a question of the pod's own stays, and has the dump fail.
//
// pid is any process of the pod, cgroup its cgroup.
func dropNotifications(pid int, cgroup string) error {
	waiting, err := unreadNetlink(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil || len(waiting) == 0 {
		return err
	}
	pids, err := cgroupProcesses(cgroup)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := dropNotificationsOf(pid, waiting); err != nil {
			return fmt.Errorf("reading notifications of process %d: %w", pid, err)
		}
	}
	return nil
}

// unreadNetlink lists the netlink sockets that have messages, as links in
// /proc/PID/fd name them. path is a /proc/PID/net/netlink, whose fields are
// sk, Eth, Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode
// (net/netlink/af_netlink.c).
func unreadNetlink(path string) (map[string]bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("listing netlink sockets: %w", err)
	}
	defer f.Close()
	const rmem, inode, fields = 4, 9, 10
	found := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < fields || words[0] == "sk" || words[rmem] == "0" {
			continue
		}
		found["socket:["+words[inode]+"]"] = true
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("listing netlink sockets: %w", err)
	}
	return found, nil
}

// dropNotificationsOf does it for those sockets that a process has open. One
// that has ended has none.
func dropNotificationsOf(pid int, waiting map[string]bool) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !waiting[link] {
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		unix.Close(pidfd)
		if err != nil {
			return err
		}
		err = dropMulticast(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// dropMulticast reads messages to groups until there is none, or one that is
// for this socket alone.
func dropMulticast(fd int) error {
	var b [1]byte
	for {
		_, from, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // it has lost some already, which is told once
		case err != nil:
			return err
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Groups == 0 {
			return nil
		}
		if _, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT|unix.MSG_TRUNC); err != nil {
			return err
		}
	}
}
