package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// pipeEnds are the ends of one pipe that are open in the pod.
type pipeEnds struct {
	read, write bool
	one         descriptor
}

func (s *survey) notePipe(d descriptor, link string, info fdinfo) {
	ends := s.pipes[link]
	if ends == nil {
		ends = &pipeEnds{one: d}
		s.pipes[link] = ends
	}
	if info.flags&unix.O_DIRECT != 0 {
		s.block(d.process, d.number, "uses a pipe in packet mode (O_DIRECT)", "have the program use a socket pair (SOCK_SEQPACKET) for packets")
	}
	mode := info.flags & unix.O_ACCMODE
	ends.read = ends.read || mode != unix.O_WRONLY
	ends.write = ends.write || mode != unix.O_RDONLY
}

// checkPipes reports pipes whose other end is outside of the pod. CRIU carries
// them, but nobody would be at the other end any more.
func (s *survey) checkPipes() error {
	half := make(map[string]bool)
	for link, ends := range s.pipes {
		if !ends.read || !ends.write {
			half[link] = true
		}
	}
	holders, err := s.outsideHolders(half)
	if err != nil {
		return err
	}
	for link, holder := range holders {
		d := s.pipes[link].one
		s.block(d.process, d.number, "has a pipe open whose other end is outside of the pod, at "+hostProcess(holder),
			insideRemedy)
	}
	return nil
}

// outsideHolders finds processes outside of the pod that have one of the
// given descriptors open, by what /proc/PID/fd says.
func (s *survey) outsideHolders(links map[string]bool) (map[string]int, error) {
	holders := make(map[string]int)
	if len(links) == 0 {
		return holders, nil
	}
	for pid := range s.table {
		if s.members[pid] {
			continue
		}
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			if procfs.Gone(err) {
				continue
			}
			return nil, err
		}
		for _, e := range entries {
			link, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil || !links[link] || s.inPod(pid) {
				continue
			}
			holders[link] = pid
		}
	}
	return holders, nil
}
