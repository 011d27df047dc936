package checkpoint

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// carriedAnonymous are the anonymous inodes that CRIU carries
// (criu/files.c, dump_one_file).
var carriedAnonymous = map[string]bool{
	"eventfd": true, "eventpoll": true, "inotify": true, "fanotify": true,
	"signalfd": true, "timerfd": true, "pidfd": true,
}

// anonymousRemedies say what to do about the others.
var anonymousRemedies = map[string]string{
	"io_uring":    "start the program without io_uring, such as UV_USE_IO_URING=0 for node",
	"userfaultfd": "start the program without userfaultfd",
	"perf_event":  "end the profiler",
	"kvm-vm":      "end the virtual machine",
	"kvm-vcpu":    "end the virtual machine",
}

func (s *survey) checkAnonymous(d descriptor, name string, info fdinfo) error {
	kind, _, _ := strings.Cut(name, ":") // as in kvm-vcpu:0
	switch {
	case kind == "pidfd":
		s.checkPidfd(d, info)
		return nil
	case kind == "eventfd":
		// Linux 6.5 and newer tell. CRIU would make it a plain counter.
		if info.other["eventfd-semaphore"] == "1" {
			s.block(d.process, d.number, "uses an eventfd as a semaphore (EFD_SEMAPHORE)", "have the program use another kind of semaphore")
		}
		return nil
	case kind == "inotify" || kind == "fanotify":
		if _, ok := info.other["fanotify sdev"]; ok {
			s.block(d.process, d.number, "watches a whole file system with fanotify", "watch directories or mounts")
		}
		return s.checkEvents(d, kind)
	case kind == "bpf-map":
		// Hash and array (linux/bpf.h).
		if t := info.other["map_type"]; t == "1" || t == "2" {
			return nil
		}
	case carriedAnonymous[kind]:
		return nil
	}
	remedy, ok := anonymousRemedies[kind]
	if !ok {
		remedy = "start the program without it"
	}
	s.block(d.process, d.number, "uses "+kind, remedy)
	return nil
}

// checkEvents reports file events that the program has not read: CRIU drops
// them. Programs read them at once, or else when they look at their files again.
func (s *survey) checkEvents(d descriptor, kind string) error {
	fd, err := d.duplicate()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unread, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // which FIONREAD is another name of
	if err != nil {
		return fmt.Errorf("asking for unread file events: %w", err)
	}
	if unread > 0 {
		s.blockNow(d.process, d.number, fmt.Sprintf("has file events (%s) that it has not read, and that would be lost", kind),
			"try again; if it remains, the program is stuck or does not care: restart it")
	}
	return nil
}

// checkPidfd accepts descriptors of processes that are in the pod or ended.
func (s *survey) checkPidfd(d descriptor, info fdinfo) {
	pid, err := strconv.Atoi(info.other["Pid"])
	if err == nil && pid > 0 && !s.inPod(pid) {
		s.block(d.process, d.number, fmt.Sprintf("has a descriptor of process %d of the host, which is not in the pod", pid), "close it")
	}
	const pidfdThread = unix.O_EXCL // linux/pidfd.h
	if info.flags&pidfdThread != 0 {
		s.block(d.process, d.number, "has a descriptor of a thread (PIDFD_THREAD)", "start the program so that it uses descriptors of processes")
	}
}
