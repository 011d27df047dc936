package checkpoint

import (
	"fmt"
	"strings"

	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	ghostfile "github.com/checkpoint-restore/go-criu/v7/crit/images/ghost-file"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-opts"
	skunix "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/tty"
	"golang.org/x/sys/unix"
)

// checkFiles looks at the open files. CRIU opens paths inside the pod and after
// the pod's cgroup has taken devices away, so a path needs no look; what does is
// what only a privileged process could have opened.
func (v *verifier) checkFiles() error {
	return readAll(v, "files.img", "FILES", func(f *criufiles.FileEntry) error {
		if err := v.checkFile(f); err != nil {
			return fmt.Errorf("open file %d: %w", f.GetId(), err)
		}
		return nil
	})
}

// openKinds are the kinds of open files that a pod may have.
var openKinds = map[criufiles.FdTypes]bool{
	criufiles.FdTypes_REG: true, criufiles.FdTypes_PIPE: true, criufiles.FdTypes_FIFO: true, criufiles.FdTypes_INETSK: true,
	criufiles.FdTypes_UNIXSK: true, criufiles.FdTypes_EVENTFD: true, criufiles.FdTypes_EVENTPOLL: true, criufiles.FdTypes_INOTIFY: true,
	criufiles.FdTypes_SIGNALFD: true, criufiles.FdTypes_TTY: true, criufiles.FdTypes_NETLINKSK: true, criufiles.FdTypes_NS: true,
	criufiles.FdTypes_TIMERFD: true, criufiles.FdTypes_MEMFD: true,
	pidfd: true,
}

// pidfd is FD_TYPES__PIDFD, which go-criu does not know yet.
const pidfd criufiles.FdTypes = 20

func (v *verifier) checkFile(f *criufiles.FileEntry) error {
	if !openKinds[f.GetType()] {
		return fmt.Errorf("%w: it is of type %s", ErrForbidden, f.GetType())
	}
	if f.Psk != nil || f.Tunf != nil || f.Ext != nil || f.Bpf != nil || f.Ffy != nil {
		return fmt.Errorf("%w: a packet socket, tunnel, BPF map or fanotify group", ErrForbidden)
	}
	if r := f.GetReg(); r != nil && (r.GetExt() || r.GetName() == "") {
		return fmt.Errorf("%w: %q is a file from outside", ErrForbidden, r.GetName())
	}
	if n := f.GetNsf(); n != nil {
		pod := v.namespaces
		allowed := map[uint32]uint32{unix.CLONE_NEWPID: pod.pid, unix.CLONE_NEWNET: pod.net, unix.CLONE_NEWIPC: pod.ipc, unix.CLONE_NEWUTS: pod.uts, unix.CLONE_NEWNS: pod.mount}
		if id, ok := allowed[n.GetNsCflag()]; !ok || id != n.GetNsId() {
			return fmt.Errorf("%w: a namespace that is not the pod's", ErrForbidden)
		}
	}
	if n := f.GetNlsk(); n != nil {
		if n.GetProtocol() == unix.NETLINK_AUDIT || n.NsId != nil && n.GetNsId() != v.namespaces.net {
			return fmt.Errorf("%w: netlink protocol %d in namespace %d", ErrForbidden, n.GetProtocol(), n.GetNsId())
		}
		if err := checkSocketOptions(n.GetOpts()); err != nil {
			return err
		}
	}
	if u := f.GetUsk(); u != nil {
		if err := v.checkUnix(u); err != nil {
			return err
		}
	}
	if i := f.GetIsk(); i != nil {
		return v.checkInet(i)
	}
	return nil
}

// Marks of unix sockets (criu/sk-unix.c): connected to one outside of the pod,
// that of CRIU itself, or passed to CRIU by its starter.
const outerUnix = 1<<0 | 1<<1 | 1<<3

func (v *verifier) checkUnix(u *skunix.UnixSkEntry) error {
	if u.GetUflags()&outerUnix != 0 || u.NsId != nil && u.GetNsId() != v.namespaces.net {
		return fmt.Errorf("%w: a unix socket with an end outside of the pod", ErrForbidden)
	}
	if p := u.GetFilePerms(); p != nil && p.GetMode()&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return fmt.Errorf("%w: a unix socket with mode %#o", ErrForbidden, p.GetMode())
	}
	return checkSocketOptions(u.GetOpts())
}

func (v *verifier) checkInet(i *skinet.InetSkEntry) error {
	switch {
	case i.GetFamily() != unix.AF_INET && i.GetFamily() != unix.AF_INET6,
		i.GetType() != unix.SOCK_STREAM && i.GetType() != unix.SOCK_DGRAM,
		i.GetIpOpts().GetRaw() != nil:
		return fmt.Errorf("%w: a socket of family %d, type %d, protocol %d", ErrForbidden, i.GetFamily(), i.GetType(), i.GetProto())
	case i.NsId != nil && i.GetNsId() != v.namespaces.net:
		return fmt.Errorf("%w: a socket in namespace %d", ErrForbidden, i.GetNsId())
	}
	switch i.GetProto() {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
	default:
		return fmt.Errorf("%w: a socket of protocol %d", ErrForbidden, i.GetProto())
	}
	return checkSocketOptions(i.GetOpts())
}

// maxPriority is the highest SO_PRIORITY without CAP_NET_ADMIN (socket(7)).
const maxPriority = 6

func checkSocketOptions(o *skopts.SkOptsEntry) error {
	if o.GetSoMark() != 0 || o.GetSoPriority() > maxPriority {
		return fmt.Errorf("%w: a socket with mark %d and priority %d", ErrForbidden, o.GetSoMark(), o.GetSoPriority())
	}
	return nil
}

// checkDescriptors looks at a table of file descriptors, for the type in it too
// must be known.
func (v *verifier) checkDescriptors(name string) error {
	return readAll(v, name, "FDINFO", func(d *criufiles.FdinfoEntry) error {
		if !openKinds[d.GetType()] {
			return fmt.Errorf("%w: %s: descriptor %d is of type %s", ErrForbidden, name, d.GetFd(), d.GetType())
		}
		return nil
	})
}

// checkTerminals refuses those that are not pseudo-terminals of the pod.
func (v *verifier) checkTerminals(name string) error {
	return readAll(v, name, "TTY_INFO", func(i *tty.TtyInfoEntry) error {
		if t := i.GetType(); t != tty.TtyType_PTY && t != tty.TtyType_CTTY {
			return fmt.Errorf("%w: terminal %d is of type %s", ErrForbidden, i.GetId(), t)
		}
		return nil
	})
}

// checkGhost looks at a file that was deleted and is open: CRIU makes it again,
// as root.
func (v *verifier) checkGhost(name string) error {
	if !ghostName(name) {
		return fmt.Errorf("%w: a pod has no image %s", ErrForbidden, name)
	}
	f, err := v.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	n, err := readSome(f, head)
	if err != nil {
		return err
	}
	data, err := headerOf(name, "GHOST_FILE", head[:n])
	if err != nil {
		return err
	}
	ghost := new(ghostfile.GhostFileEntry)
	if _, err := entryOf(name, data, ghost); err != nil {
		return err
	}
	switch ghost.GetMode() & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFLNK, unix.S_IFSOCK:
		return nil
	case unix.S_IFCHR:
		if ghost.GetRdev() == 0 { // overlay's whiteout
			return nil
		}
	}
	return fmt.Errorf("%w: %s is a deleted file of mode %#o", ErrForbidden, name, ghost.GetMode())
}

func ghostName(name string) bool {
	number := strings.TrimSuffix(strings.TrimPrefix(name, "ghost-file-"), ".img")
	return number != "" && strings.Trim(number, "0123456789abcdef") == ""
}
