//go:build root

package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"podd/sharedmem"
)

// The tests' network: a client and two places for the pod, a source and a
// target, each with its own link. The pod's address exists in both places;
// the client's route says which of them it means.
const (
	podAddress    = "100.64.7.7"
	clientAddress = "192.0.2.10"
)

// waitLimit bounds every wait for something that should happen at once.
const waitLimit = time.Minute

var testNumber atomic.Int32

// programPath is the pod program, filterPath podd-pagefilter.so, built by TestMain.
var programPath, filterPath string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sharedmem.Subcommand {
		os.Exit(sharedmem.Main())
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	if os.Getuid() != 0 {
		return 0, fmt.Errorf("tests with the tag root must run as root")
	}
	dir, err := os.MkdirTemp("", "poddtest-checkpoint-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	programPath = filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", programPath, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the test program: %w\n%s", err, out)
	}
	filterPath = filepath.Join(dir, "podd-pagefilter.so")
	if err := buildFilter(filterPath, ""); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLimit); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// world is the network and the two places.
type world struct {
	client         string // path of the client's network namespace
	handle         *netlink.Handle
	source, target *place
}

// place is where the pod can be: a network namespace, a cgroup, a root.
type place struct {
	name    string
	netNS   string
	link    string // the client's end
	freezer *Freezer
	root    string
	images  string
	work    string
	world   *world
	// shared takes the shared memory that comes; nil if none is to.
	shared sharedmem.Sink
}

// cgroupRoots finds what has a freezer here: a controller of version 1, the hierarchy of
// version 2, or, on a hybrid machine, both.
func cgroupRoots(t *testing.T) map[string]string {
	t.Helper()
	roots := make(map[string]string)
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			roots["v2"] = dir
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/freezer"); err == nil {
		roots["v1"] = "/sys/fs/cgroup/freezer"
	}
	if len(roots) == 0 {
		t.Fatal("no cgroup hierarchy with a freezer is mounted")
	}
	return roots
}

// newWorld uses version 1 if it is there, which is the harder one.
func newWorld(t *testing.T) *world {
	t.Helper()
	roots := cgroupRoots(t)
	if root, ok := roots["v1"]; ok {
		return newWorldIn(t, root)
	}
	return newWorldIn(t, roots["v2"])
}

func newWorldIn(t *testing.T, cgroups string) *world {
	t.Helper()
	id := fmt.Sprintf("poddtest-checkpoint-%d-%d", os.Getpid(), testNumber.Add(1))
	w := &world{}
	w.client = newNetNS(t, id+"-c")
	ns, err := netns.GetFromPath(w.client)
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	w.handle, err = netlink.NewHandleAt(ns)
	must(t, err)
	t.Cleanup(w.handle.Close)
	run(t, "ip", "-n", id+"-c", "addr", "add", clientAddress+"/32", "dev", "lo")
	w.source = newPlace(t, w, id, "s", cgroups)
	w.target = newPlace(t, w, id, "t", cgroups)
	return w
}

func newNetNS(t *testing.T, name string) string {
	t.Helper()
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return "/run/netns/" + name
}

func newPlace(t *testing.T, w *world, id, name, cgroups string) *place {
	t.Helper()
	p := &place{name: id + "-" + name, link: "to-" + name, world: w}
	p.netNS = newNetNS(t, p.name)
	run(t, "ip", "link", "add", p.link, "netns", id+"-c", "type", "veth", "peer", "name", "eth0", "netns", p.name)
	run(t, "ip", "-n", p.name, "addr", "add", podAddress+"/32", "dev", "eth0")
	run(t, "ip", "-n", p.name, "link", "set", "eth0", "up")
	run(t, "ip", "-n", p.name, "route", "add", clientAddress+"/32", "dev", "eth0")

	cgroup := filepath.Join(cgroups, p.name)
	must(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() {
		eventually(t, "removing "+cgroup, func() bool { return os.Remove(cgroup) == nil })
	})
	var err error
	p.freezer, err = NewFreezer(cgroup)
	must(t, err)

	p.root = t.TempDir()
	for _, dir := range []string{"proc", "dev", "tmp", "bin"} {
		must(t, os.Mkdir(filepath.Join(p.root, dir), 0o755))
	}
	must(t, unix.Mknod(filepath.Join(p.root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	run(t, "cp", programPath, filepath.Join(p.root, "bin/program"))
	mount(t, p.root, p.root)
	// A directory that is not part of the image, as /tmp of a pod.
	mount(t, t.TempDir(), filepath.Join(p.root, "tmp"))

	p.images, err = os.MkdirTemp("/dev/shm", p.name)
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(p.images) })
	p.work = t.TempDir()
	return p
}

func mount(t *testing.T, source, target string) {
	t.Helper()
	must(t, unix.Mount(source, target, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", target, err)
		}
	})
}

func (p *place) block() error {
	link, err := p.world.handle.LinkByName(p.link)
	if err != nil {
		return err
	}
	return p.world.handle.LinkSetDown(link)
}

// unblock makes this place the one that the pod's address means.
func (p *place) unblock() error {
	link, err := p.world.handle.LinkByName(p.link)
	if err != nil {
		return err
	}
	if err := p.world.handle.LinkSetUp(link); err != nil {
		return err
	}
	return p.world.handle.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: net.ParseIP(podAddress).To4(), Mask: net.CIDRMask(32, 32)},
		Scope:     netlink.SCOPE_LINK,
		Src:       net.ParseIP(clientAddress),
	})
}

func (p *place) join(pid int) error {
	return os.WriteFile(filepath.Join(p.freezer.Dir(), "cgroup.procs"), fmt.Append(nil, pid), 0)
}

func (p *place) dumpOptions(pid int) DumpOptions {
	return DumpOptions{
		PID: pid, NetNS: p.netNS, ImagesDir: p.images, WorkDir: p.work,
		ExternalMounts: map[string]string{"/tmp": "tmp"},
		FreezeCgroup:   p.freezer.Dir(),
		Ahead:          true,
		EarlyImages:    true,
		Hooks: DumpHooks{
			Freeze: p.freezer.Freeze, Thaw: p.freezer.Thaw,
			Block: p.block, Unblock: p.unblock,
		},
	}
}

func (p *place) restoreOptions() RestoreOptions {
	return RestoreOptions{
		ImagesDir: p.images, WorkDir: p.work, Root: p.root, NetNS: p.netNS,
		ExternalMounts: map[string]string{"tmp": filepath.Join(p.root, "tmp")},
		Hooks:          RestoreHooks{JoinCgroup: p.join, Release: p.unblock},
	}
}

// clear makes the images directory empty.
func (p *place) clear(t *testing.T) {
	t.Helper()
	must(t, os.RemoveAll(p.images))
	must(t, os.Mkdir(p.images, 0o700))
}

// empty waits until no process is in the cgroup.
func (p *place) empty(t *testing.T) {
	t.Helper()
	eventually(t, "no process left in "+p.freezer.Dir(), func() bool {
		b, err := os.ReadFile(filepath.Join(p.freezer.Dir(), "cgroup.procs"))
		must(t, err)
		return len(b) == 0
	})
}

// testPod is the pod program running at the source.
type testPod struct {
	pid int
}

func (p *place) start(t *testing.T, mebibytes int) *testPod {
	t.Helper()
	cmd := exec.Command(filepath.Join(p.root, "bin/program"), p.root, fmt.Sprint(mebibytes))
	// Or else the Go runtime keeps files of the host's cgroups open.
	cmd.Env = []string{"GODEBUG=containermaxprocs=0"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	must(t, inNetNS(p.netNS, cmd.Start))
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		p.freezer.Thaw()
		cmd.Process.Kill()
		<-done
	})
	must(t, p.join(cmd.Process.Pid))
	must(t, p.unblock())
	eventually(t, "the pod serves", func() bool {
		select {
		case <-done:
			t.Fatalf("the pod ended: %s", stderr.String())
		default:
		}
		c, err := p.world.tryDial(8)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return &testPod{pid: cmd.Process.Pid}
}

// tryDial connects from the client to the pod's address.
func (w *world) tryDial(port int) (net.Conn, error) {
	var conn net.Conn
	err := inNetNS(w.client, func() error {
		var err error
		conn, err = net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.ParseIP(podAddress), Port: port})
		return err
	})
	return conn, err
}

func (w *world) dial(t *testing.T, port int) net.Conn {
	t.Helper()
	c, err := w.tryDial(port)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// control asks the pod for its state over one connection.
type control struct {
	net.Conn
	in *bufio.Reader
}

func (w *world) control(t *testing.T) *control {
	c := w.dial(t, 8)
	return &control{c, bufio.NewReader(c)}
}

type podState struct {
	pid    int
	host   string
	ticks  int64
	digest string
}

func (c *control) ask(t *testing.T) podState {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(waitLimit)))
	fmt.Fprintln(c, "state")
	line, err := c.in.ReadString('\n')
	must(t, err)
	var s podState
	_, err = fmt.Sscan(line, &s.pid, &s.host, &s.ticks, &s.digest)
	must(t, err)
	return s
}

func openEngine(t *testing.T) *Engine {
	t.Helper()
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	e, err := Open(Options{PageFilter: filterPath, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))})
	must(t, err)
	return e
}

// pagesPipe is a connection from the source to the target.
func pagesPipe(t *testing.T) (source, target net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	source, err = net.Dial("tcp", l.Addr().String())
	must(t, err)
	target, err = l.Accept()
	must(t, err)
	t.Cleanup(func() { source.Close(); target.Close() })
	return source, target
}

// receive takes pages and images on the target while the source sends them.
func (p *place) receive(ctx context.Context, conn net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() {
		in := bufio.NewReaderSize(conn, pageBuffer)
		images := NewImageStore(p.images, ImageLimits{Bytes: 1 << 30, Files: 1000})
		_, free, err := ReceivePages(ctx, in, p.images, PageLimits{Bytes: 1 << 30, Images: 100}, p.shared, images)
		defer free()
		if err == nil {
			_, err = images.Receive(ctx, in)
		}
		images.images() // nothing is decoded any more
		done <- err
	}()
	return done
}
