package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	ghostfile "github.com/checkpoint-restore/go-criu/v7/crit/images/ghost-file"
	criuinventory "github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/ns"
	packetsock "github.com/checkpoint-restore/go-criu/v7/crit/images/packet-sock"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-opts"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/tty"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The images in testdata/images are of two pods of a lab, as the target got
// them, without their memory: a sleep with a volume, from its first move, and the
// demo's desktop, from its third.

// copyImages copies the images of a pod of testdata.
func copyImages(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata/images", name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testPolicy is that of the pods in testdata.
func testPolicy(t testing.TB) Policy {
	t.Helper()
	filters := new(seccomp.SeccompEntry)
	readImage(t, filepath.Join("testdata/images/pod/seccomp.img"), filters)
	own := func(at, kind string, flags uint32) PolicyMount {
		return PolicyMount{Destination: at, Type: kind, Root: "/", Flags: flags}
	}
	part := func(name string) PolicyMount {
		return PolicyMount{Destination: "/proc" + name, Type: "proc", Root: name, Flags: unix.MS_RDONLY, Required: true}
	}
	outer := func(at string, flags uint32, required bool) PolicyMount {
		return PolicyMount{Destination: at, Flags: flags, Required: required}
	}
	const noAccess = unix.MS_NOSUID | unix.MS_NODEV
	return Policy{
		Capabilities:     0x800405fb, // podman's default set
		SystemCallFilter: filters.GetSeccompFilters()[0].GetFilter(),
		Mounts: []PolicyMount{
			own("/proc", "proc", noAccess|unix.MS_NOEXEC), own("/sys", "sysfs", noAccess|unix.MS_NOEXEC|unix.MS_RDONLY),
			own("/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC), own("/dev/mqueue", "mqueue", noAccess|unix.MS_NOEXEC),
			part("/bus"), part("/fs"), part("/irq"), part("/sys"),
			outer("/dev", unix.MS_NOSUID, false), outer("/tmp", noAccess, false), outer("/run", noAccess, false), outer("/data", noAccess, false),
			outer("/proc/keys", 0, true), outer("/proc/timer_list", 0, true), outer("/proc/interrupts", 0, true),
			outer("/proc/acpi", unix.MS_RDONLY, true), outer("/sys/dev/block", unix.MS_RDONLY, true), outer("/sys/firmware", unix.MS_RDONLY, true),
		},
	}
}

// readImage reads the first message of an image and returns the others as they are.
func readImage(t testing.TB, path string, into proto.Message) (header, rest []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := imageHeader
	if strings.HasSuffix(path, "inventory.img") {
		size = 4
	}
	header, data = data[:size], data[size:]
	n := binary.LittleEndian.Uint32(data)
	if err := proto.Unmarshal(data[4:4+n], into); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(header), data[4+n:]
}

func appendEntry(t testing.TB, b []byte, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
}

// edit changes the messages of an image.
func edit[T any, M interface {
	*T
	proto.Message
}](name string, change func(M)) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, name)
		first := M(new(T))
		image, rest := readImage(t, path, first)
		change(first)
		image = appendEntry(t, image, first)
		for len(rest) > 0 {
			m := M(new(T))
			n := binary.LittleEndian.Uint32(rest)
			if err := proto.Unmarshal(rest[4:4+n], m); err != nil {
				t.Fatal(err)
			}
			change(m)
			image, rest = appendEntry(t, image, m), rest[4+n:]
		}
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// addFile adds an open file.
func addFile(f *criufiles.FileEntry) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, "files.img")
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f.Id = proto.Uint32(999)
		data, err := proto.MarshalOptions{AllowPartial: true}.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		image = append(binary.LittleEndian.AppendUint32(image, uint32(len(data))), data...)
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// put adds an image that a pod does not have.
func put(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("anything"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func thread(change func(*criucore.ThreadCoreEntry)) func(t *testing.T, dir string) {
	return edit("core-7.img", func(c *criucore.CoreEntry) { change(c.GetThreadCore()) })
}

func mounts(at string, change func(*mnt.MntEntry)) func(t *testing.T, dir string) {
	return edit("mountpoints-12.img", func(m *mnt.MntEntry) {
		if m.GetMountpoint() == at {
			change(m)
		}
	})
}

func unknownField(m proto.Message, number protowire.Number, value uint64) {
	b := protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), value)
	m.ProtoReflect().SetUnknown(append(m.ProtoReflect().GetUnknown(), b...))
}

// Every way to more than a pod may have, by the images, is refused.
func TestVerifyRefuses(t *testing.T) {
	inet := func(change func(*skinet.InetSkEntry)) func(t *testing.T, dir string) {
		i := &skinet.InetSkEntry{
			Id: proto.Uint32(999), Ino: proto.Uint32(1), Family: proto.Uint32(unix.AF_INET), Type: proto.Uint32(unix.SOCK_DGRAM), Proto: proto.Uint32(unix.IPPROTO_UDP),
			Opts: new(skopts.SkOptsEntry),
		}
		change(i)
		return addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_INETSK.Enum(), Isk: i})
	}
	for name, attack := range map[string]func(t *testing.T, dir string){
		"a capability":          thread(func(c *criucore.ThreadCoreEntry) { c.Creds.CapEff[0] |= 1 << unix.CAP_SYS_ADMIN }),
		"a bounding capability": thread(func(c *criucore.ThreadCoreEntry) { c.Creds.CapBnd[0] |= 1 << unix.CAP_NET_RAW }),
		"a high capability":     thread(func(c *criucore.ThreadCoreEntry) { c.Creds.CapPrm[1] |= 1 << (unix.CAP_BPF - 32) }),
		"an ambient capability": thread(func(c *criucore.ThreadCoreEntry) { unknownField(c.Creds, fieldCapAmb, 1<<unix.CAP_SYS_ADMIN) }),
		"too few capabilities":  thread(func(c *criucore.ThreadCoreEntry) { c.Creds.CapInh = nil }),
		"no credentials":        thread(func(c *criucore.ThreadCoreEntry) { c.Creds = nil }),
		"a security profile":    thread(func(c *criucore.ThreadCoreEntry) { c.Creds.LsmProfile = proto.String("unconfined") }),
		"an unknown field":      thread(func(c *criucore.ThreadCoreEntry) { unknownField(c.Creds, 99, 1) }),
		"no filter": thread(func(c *criucore.ThreadCoreEntry) {
			c.SeccompMode, c.SeccompFilter = criucore.SeccompMode_disabled.Enum(), nil
		}),
		"a filter by no mode":    thread(func(c *criucore.ThreadCoreEntry) { c.SeccompMode = nil }),
		"strict mode":            thread(func(c *criucore.ThreadCoreEntry) { c.SeccompMode = criucore.SeccompMode_strict.Enum() }),
		"a filter not there":     thread(func(c *criucore.ThreadCoreEntry) { c.SeccompFilter = proto.Uint32(77) }),
		"realtime":               thread(func(c *criucore.ThreadCoreEntry) { c.SchedPolicy = proto.Uint32(unix.SCHED_FIFO) }),
		"a nice value":           thread(func(c *criucore.ThreadCoreEntry) { c.SchedNice = proto.Int32(-20) }),
		"a cgroup of its own":    thread(func(c *criucore.ThreadCoreEntry) { c.CgSet = proto.Uint32(77) }),
		"an OOM score":           edit("core-7.img", func(c *criucore.CoreEntry) { c.Tc.OomScoreAdj = proto.Int32(-1000) }),
		"a limit of priorities":  edit("core-7.img", func(c *criucore.CoreEntry) { c.Tc.Rlimits.Rlimits[rlimitRealtime].Max = proto.Uint64(99) }),
		"a filter in old places": edit("core-7.img", func(c *criucore.CoreEntry) { c.Tc.OldSeccompFilter = proto.Uint32(0) }),
		"an unknown state":       edit("core-7.img", func(c *criucore.CoreEntry) { c.Tc.TaskState = proto.Uint32(9) }),
		"a chain without end":    edit("seccomp.img", func(s *seccomp.SeccompEntry) { s.SeccompFilters[0].Prev = proto.Uint32(0) }),
		"a listener":             edit("seccomp.img", func(s *seccomp.SeccompEntry) { s.SeccompFilters[0].Flags = proto.Uint32(1 << 3) }),
		"half an instruction":    edit("seccomp.img", func(s *seccomp.SeccompEntry) { s.SeccompFilters[0].Filter = []byte("half") }),

		"the host's processes": edit("ids-1.img", func(i *criucore.TaskKobjIdsEntry) { i.PidNsId = proto.Uint32(1) }),
		"the host's mounts":    edit("ids-1.img", func(i *criucore.TaskKobjIdsEntry) { i.MntNsId = proto.Uint32(6) }),
		"another network":      edit("ids-7.img", func(i *criucore.TaskKobjIdsEntry) { i.NetNsId = proto.Uint32(77) }),
		"a user namespace":     edit("ids-1.img", func(i *criucore.TaskKobjIdsEntry) { i.UserNsId = proto.Uint32(77) }),
		"no namespaces": edit("ids-7.img", func(i *criucore.TaskKobjIdsEntry) {
			*i = criucore.TaskKobjIdsEntry{VmId: i.VmId, FilesId: i.FilesId, FsId: i.FsId, SighandId: i.SighandId}
		}),
		"CRIU's packet filters": edit("inventory.img", func(i *criuinventory.InventoryEntry) { i.NetworkLockMethod = proto.Uint32(0) }),
		"an old format":         edit("inventory.img", func(i *criuinventory.InventoryEntry) { i.NsPerId = nil }),
		"no first process":      edit("pstree.img", func(p *pstree.PstreeEntry) { p.Pid = proto.Uint32(p.GetPid() + 1) }),
		"two first processes":   edit("pstree.img", func(p *pstree.PstreeEntry) { p.Ppid = proto.Uint32(0) }),
		"another's thread":      edit("pstree.img", func(p *pstree.PstreeEntry) { p.Threads = []uint32{1} }),

		"a mount of the host": mounts("/data", func(m *mnt.MntEntry) {
			m.ExtKey, m.Source, m.Fstype = nil, proto.String("/dev/vda"), proto.Uint32(uint32(mnt.Fstype_AUTO))
		}),
		"another's mount":          mounts("/tmp", func(m *mnt.MntEntry) { m.ExtKey = proto.String("/data") }),
		"a mount elsewhere":        mounts("/data", func(m *mnt.MntEntry) { m.Mountpoint, m.ExtKey = proto.String("/etc"), proto.String("/etc") }),
		"a mount up":               mounts("/data", func(m *mnt.MntEntry) { m.Mountpoint = proto.String("/data/../etc") }),
		"/proc/sys to write":       mounts("/proc/sys", func(m *mnt.MntEntry) { m.Flags = proto.Uint32(m.GetFlags() &^ unix.MS_RDONLY) }),
		"/sys to write":            mounts("/sys", func(m *mnt.MntEntry) { m.Flags = proto.Uint32(m.GetFlags() &^ unix.MS_RDONLY) }),
		"another part of /proc":    mounts("/proc/sys", func(m *mnt.MntEntry) { m.Root = proto.String("/bus") }),
		"what is masked":           mounts("/proc/keys", func(m *mnt.MntEntry) { m.Mountpoint, m.ExtKey = proto.String("/data/keys"), proto.String("/data/keys") }),
		"a mask below":             mounts("/proc/sys", func(m *mnt.MntEntry) { m.ParentMntId = proto.Uint32(194) }),
		"devices in the root":      mounts("/", func(m *mnt.MntEntry) { m.Flags = proto.Uint32(0) }),
		"a moving mount":           mounts("/sys", func(m *mnt.MntEntry) { m.SbFlags = proto.Uint32(unix.MS_MOVE) }),
		"a shared mount":           mounts("/data", func(m *mnt.MntEntry) { m.SharedId = proto.Uint32(1) }),
		"options of a file system": mounts("/dev/pts", func(m *mnt.MntEntry) { m.Options = proto.String("uid=1000") }),
		"memory out of order": edit("mm-7.img", func(m *mm.MmEntry) {
			m.Vmas[0], m.Vmas[1] = m.Vmas[1], m.Vmas[0]
		}),
		"memory at the top":    edit("mm-7.img", func(m *mm.MmEntry) { m.Vmas[len(m.Vmas)-2].End = proto.Uint64(1 << 63) }),
		"memory of packets":    edit("mm-7.img", func(m *mm.MmEntry) { m.Vmas[0].Status = proto.Uint32(1 << 11) }),
		"memory by a plugin":   edit("mm-7.img", func(m *mm.MmEntry) { m.Vmas[0].Status = proto.Uint32(1 << 27) }),
		"memory without pages": edit("mm-7.img", func(m *mm.MmEntry) { m.Vmas[0].Start = proto.Uint64(m.Vmas[0].GetStart() + 1) }),

		"a raw socket":           inet(func(i *skinet.InetSkEntry) { i.Type = proto.Uint32(unix.SOCK_RAW) }),
		"a raw protocol":         inet(func(i *skinet.InetSkEntry) { i.Proto = proto.Uint32(unix.IPPROTO_SCTP) }),
		"another's socket":       inet(func(i *skinet.InetSkEntry) { i.NsId = proto.Uint32(77) }),
		"a marked socket":        inet(func(i *skinet.InetSkEntry) { i.Opts.SoMark = proto.Uint32(1) }),
		"a packet socket":        addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_PACKETSK.Enum(), Psk: new(packetsock.PacketSockEntry)}),
		"a hidden packet socket": addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_EVENTFD.Enum(), Psk: new(packetsock.PacketSockEntry)}),
		"a tunnel":               addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_TUNF.Enum()}),
		"a BPF map":              addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_BPFMAP.Enum()}),
		"a file outside":         addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_EXT.Enum()}),
		"a host namespace":       addFile(&criufiles.FileEntry{Type: criufiles.FdTypes_NS.Enum(), Nsf: &ns.NsFileEntry{Id: proto.Uint32(999), NsId: proto.Uint32(1), NsCflag: proto.Uint32(unix.CLONE_NEWPID), Flags: proto.Uint32(0)}}),

		"BPF programs":         put("bpfmap-data.img"),
		"network devices":      put("netdev-2.img"),
		"packet filters":       put("iptables-2.img"),
		"a user mapping":       put("userns-7.img"),
		"an archive":           put("tmpfs-dev-69.tar.gz.img"),
		"security profiles":    put("apparmor.img"),
		"binary formats":       put("binfmt-misc.img"),
		"old credentials":      put("creds-7.img"),
		"old open files":       put("reg-files.img"),
		"a stranger's process": put("core-8.img"),
		"other mounts":         put("mountpoints-13.img"),
		"a truncated image":    put("files.img"),
		"a terminal outside": func(t *testing.T, dir string) {
			image := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, imageMagic), uint32(magics["TTY_INFO"]))
			info := &tty.TtyInfoEntry{
				Id: proto.Uint32(1), Type: tty.TtyType_CONSOLE.Enum(), Locked: proto.Bool(false), Exclusive: proto.Bool(false), PacketMode: proto.Bool(false),
				Sid: proto.Uint32(1), Pgrp: proto.Uint32(1), Rdev: proto.Uint32(1),
			}
			if err := os.WriteFile(filepath.Join(dir, "tty-info.img"), appendEntry(t, image, info), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a deleted device": func(t *testing.T, dir string) {
			image := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, imageMagic), uint32(magics["GHOST_FILE"]))
			ghost := &ghostfile.GhostFileEntry{Uid: proto.Uint32(0), Gid: proto.Uint32(0), Mode: proto.Uint32(unix.S_IFBLK | 0o666), Rdev: proto.Uint32(8 << 8)}
			if err := os.WriteFile(filepath.Join(dir, "ghost-file-1.img"), appendEntry(t, image, ghost), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T, dir string) {
			if err := os.Symlink("/etc/passwd", filepath.Join(dir, "fs-9.img")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyImages(t, "pod")
			attack(t, dir)
			err := testPolicy(t).Verify(dir)
			if !errors.Is(err, ErrForbidden) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrLimit) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	for _, name := range []string{"pod", "desktop"} {
		dir := copyImages(t, name)
		before, err := os.ReadFile(filepath.Join(dir, "seccomp.img"))
		if err != nil {
			t.Fatal(err)
		}
		if err := testPolicy(t).Verify(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		after, err := os.ReadFile(filepath.Join(dir, "seccomp.img"))
		if err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the filters were changed (%v)", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.img")); !os.IsNotExist(err) {
			t.Errorf("%s: the control groups of another host are still there (%v)", name, err)
		}
	}
}

// A pod that comes with other filters gets this host's too.
func TestVerifyImposesFilter(t *testing.T) {
	dir := copyImages(t, "pod")
	policy := testPolicy(t)
	allow := []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f} // return SECCOMP_RET_ALLOW
	edit("seccomp.img", func(s *seccomp.SeccompEntry) {
		for _, f := range s.SeccompFilters {
			f.Filter = allow
		}
	})(t, dir)
	if err := policy.Verify(dir); err != nil {
		t.Fatal(err)
	}
	got := new(seccomp.SeccompEntry)
	readImage(t, filepath.Join(dir, "seccomp.img"), got)
	list := got.GetSeccompFilters()
	// Two of the pod's own, both above this host's.
	if len(list) != 3 || list[0].GetPrev() != 2 || list[1].GetPrev() != 2 || !bytes.Equal(list[2].GetFilter(), policy.SystemCallFilter) || list[2].GetFlags() != list[0].GetFlags() {
		t.Errorf("the %d filters are not as they should be", len(list))
	}
	// Once is enough.
	if err := policy.Verify(dir); err != nil {
		t.Fatal(err)
	}
	readImage(t, filepath.Join(dir, "seccomp.img"), got)
	if len(got.GetSeccompFilters()) != 3 {
		t.Errorf("there are %d filters", len(got.GetSeccompFilters()))
	}
}

// Order and place make no difference, everything else does.
func TestFilterMeaning(t *testing.T) {
	op := func(code uint16, onTrue, onFalse byte, k uint32) []byte {
		b := append(binary.LittleEndian.AppendUint16(nil, code), onTrue, onFalse)
		return binary.LittleEndian.AppendUint32(b, k)
	}
	program := func(parts ...[]byte) meaning { return filterMeaning(bytes.Join(parts, nil)) }
	load, other := op(0x20, 0, 0, 4), op(0x20, 0, 0, 0)
	allow, deny, kill := op(6, 0, 0, 0x7fff0000), op(6, 0, 0, 0x50001), op(6, 0, 0, 0)
	want := program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 2), deny, allow, kill)
	for name, same := range map[string]meaning{
		"order":         program(load, op(bpfEqual, 3, 0, 2), op(bpfEqual, 1, 0, 1), deny, allow, kill),
		"place":         program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 3, 0, 2), deny, allow, deny, kill),
		"jumps":         program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 2), op(bpfAlways, 0, 0, 2), allow, kill, deny),
		"twice a value": program(load, op(bpfEqual, 3, 0, 1), op(bpfEqual, 3, 0, 2), op(bpfEqual, 2, 0, 1), deny, allow, kill),
	} {
		if same != want {
			t.Errorf("%s makes a difference", name)
		}
	}
	for name, different := range map[string]meaning{
		"targets":      program(load, op(bpfEqual, 3, 0, 1), op(bpfEqual, 1, 0, 2), deny, allow, kill),
		"values":       program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 3), deny, allow, kill),
		"the first":    program(load, op(bpfEqual, 3, 0, 1), op(bpfEqual, 3, 0, 2), op(bpfEqual, 0, 0, 1), allow, allow, kill),
		"the rest":     program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 2), allow, allow, kill),
		"what is read": program(other, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 2), deny, allow, kill),
		"reading anew": program(load, op(bpfEqual, 3, 0, 1), other, op(bpfEqual, 2, 0, 2), deny, allow, kill),
		"no end":       program(load, op(bpfEqual, 2, 0, 1), op(bpfEqual, 2, 0, 2), deny, allow),
		"another test": program(load, op(0x25, 2, 0, 1), op(bpfEqual, 2, 0, 2), deny, allow, kill),
	} {
		if different == want {
			t.Errorf("%s makes no difference", name)
		}
	}
}

// Threads of one process either have a filter each, or the first one's is for
// all.
func TestVerifyThreads(t *testing.T) {
	own := func() *criucore.ThreadCoreEntry {
		return &criucore.ThreadCoreEntry{SeccompMode: criucore.SeccompMode_filter.Enum(), SeccompFilter: proto.Uint32(0)}
	}
	shared := &criucore.ThreadCoreEntry{SeccompMode: criucore.SeccompMode_disabled.Enum()}
	for _, test := range []struct {
		name    string
		flags   uint32
		threads []*criucore.ThreadCoreEntry
		ok      bool
	}{
		{"one, for all", filterTSYNC, []*criucore.ThreadCoreEntry{own()}, true},
		{"one", 0, []*criucore.ThreadCoreEntry{own()}, true},
		{"one without", 0, []*criucore.ThreadCoreEntry{shared}, false},
		{"two, for all", filterTSYNC, []*criucore.ThreadCoreEntry{own(), shared, shared}, true},
		{"two, not for all", 0, []*criucore.ThreadCoreEntry{own(), shared}, false},
		{"two with their own", 0, []*criucore.ThreadCoreEntry{own(), own()}, true},
		{"two of which one is for all", filterTSYNC, []*criucore.ThreadCoreEntry{own(), own()}, false},
		{"three of which one breaks it", filterTSYNC, []*criucore.ThreadCoreEntry{own(), own(), shared}, false},
		{"the first without", filterTSYNC, []*criucore.ThreadCoreEntry{shared, own()}, false},
	} {
		v := &verifier{compared: map[string]bool{}, chains: map[uint32]bool{}, filters: &seccomp.SeccompEntry{SeccompFilters: []*seccomp.SeccompFilter{{Flags: proto.Uint32(test.flags)}}}}
		if err := v.checkFilters(test.threads); (err == nil) != test.ok {
			t.Errorf("%s: got %v", test.name, err)
		}
	}
}

func TestVerifyNoNewPrivileges(t *testing.T) {
	policy := testPolicy(t)
	policy.NoNewPrivileges = true
	dir := copyImages(t, "pod")
	if err := policy.Verify(dir); !errors.Is(err, ErrForbidden) {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"core-1.img", "core-7.img"} {
		edit(name, func(c *criucore.CoreEntry) { unknownField(c.ThreadCore.Creds, fieldNoNewPrivs, 1) })(t, dir)
	}
	if err := policy.Verify(dir); err != nil {
		t.Error(err)
	}
}

func TestVerifyLimits(t *testing.T) {
	policy := testPolicy(t)
	policy.Threads = 1
	if err := policy.Verify(copyImages(t, "desktop")); !errors.Is(err, ErrLimit) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, name := range []string{"pod", "desktop"} {
		b.Run(name, func(b *testing.B) {
			dir, policy := copyImages(b, name), testPolicy(b)
			for b.Loop() {
				if err := policy.Verify(dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzVerify puts any bytes in the place of any image.
func FuzzVerify(f *testing.F) {
	entries, err := os.ReadDir("testdata/images/pod")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join("testdata/images/pod", e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.Name(), data)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if !imageName.MatchString(name) {
			return
		}
		dir := copyImages(t, "pod")
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		policy := testPolicy(t)
		if policy.Verify(dir) != nil {
			return
		}
		// What was accepted is accepted again: it was not made worse.
		if err := policy.Verify(dir); err != nil {
			t.Error(err)
		}
	})
}
