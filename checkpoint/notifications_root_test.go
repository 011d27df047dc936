//go:build root

package checkpoint

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestNotificationsAreDropped has a socket told that a device came up, and one
// that has an answer to a question as well.
func TestNotificationsAreDropped(t *testing.T) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: its namespace goes with it
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			listener, err := netlinkSocket(unix.RTMGRP_LINK)
			if err != nil {
				return err
			}
			defer unix.Close(listener)
			asker, err := netlinkSocket(0)
			if err != nil {
				return err
			}
			defer unix.Close(asker)
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			// A header without a body: RTM_GETLINK as a dump.
			question := []byte{17, 0, 0, 0, unix.RTM_GETLINK, 0, unix.NLM_F_REQUEST | (unix.NLM_F_DUMP & 0xff), unix.NLM_F_DUMP >> 8, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			if err := unix.Sendto(asker, question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return err
			}
			path := fmt.Sprintf("/proc/self/task/%d/net/netlink", unix.Gettid())
			waiting, err := unreadNetlink(path)
			if err != nil || !waiting[socketLink(listener)] || !waiting[socketLink(asker)] {
				return fmt.Errorf("before: %v, %v", waiting, err)
			}
			if err := dropNotificationsOf(os.Getpid(), waiting); err != nil {
				return err
			}
			waiting, err = unreadNetlink(path)
			if err != nil || waiting[socketLink(listener)] || !waiting[socketLink(asker)] {
				return fmt.Errorf("after: %v, %v; want the answer only", waiting, err)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// socketLink is what a socket's descriptor is a link to.
func socketLink(fd int) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err.Error()
	}
	return link
}

func netlinkSocket(groups uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
}
