package checkpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// With lazy_pages CRIU maps all private memory elsewhere first and moves it into place
// afterwards, since it registers memory with its userfaultfd while it does that (criu/mem.c,
// premap_priv_vmas): of a desktop's restore that is more than a third. Without, it maps
// nearly everything in place. So the preloaded library makes a userfaultfd in each process
// and sends it here (pagefilter/userfault.c), and what was left out of the dump is
// registered at the hold, before anything of the pod runs (register.go).

// userfaultSocket is where the library finds us, in the directory of the images:
// restored processes have that one open.
const userfaultSocket = "userfault.socket"

// userfaultVariable tells the library that processes are to have userfaultfds.
const userfaultVariable = "PODD_USERFAULT"

// lastUserfault is how long it may take to receive what was sent before the hold.
const lastUserfault = 10 * time.Second

// canRestoreInPlace reports whether the library can make userfaultfds, and memory stays
// untouched until it is registered: a page that CRIU restores into memory which is
// always in huge pages makes zeros of all its neighbours.
func (e *Engine) canRestoreInPlace() bool {
	if e.canLeaveOut() != nil || e.outOfPlace.Load() {
		return false
	}
	huge, err := AlwaysHuge()
	return err == nil && len(huge) == 0
}

// AlwaysHuge returns the kernel's settings, as paths, by which it uses huge pages for
// memory whose program has not asked for them. Where there are any, a restore whose
// memory is filled in takes longer (Documentation/admin-guide/mm/transhuge.rst).
func AlwaysHuge() ([]string, error) { return alwaysHuge("/sys/kernel/mm/transparent_hugepage") }

func alwaysHuge(dir string) (huge []string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "hugepages-*", "enabled"))
	if err != nil {
		return nil, fmt.Errorf("listing the sizes of huge pages: %w", err)
	}
	for _, name := range append(names, filepath.Join(dir, "enabled")) {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without
		}
		if err != nil {
			return nil, fmt.Errorf("asking whether huge pages are used: %w", err)
		}
		if strings.Contains(string(b), "[always]") {
			huge = append(huge, name)
		}
	}
	return huge, nil
}

// inPlace receives the userfaultfds of a restore from the library: each process
// connects, says its number in the pod as an i32 and sends its descriptor with it.
type inPlace struct {
	give      func(pid int, uffd *os.File) error
	imagesDir string
	l         *net.UnixListener
	plans     map[int]*plan
	// done is closed when the last descriptor was passed on, or with err.
	done chan struct{}
	err  error
	// refused is what give failed with.
	refused error
	// planned is closed when all plans were read, or with planErr.
	planned chan struct{}
	planErr error
	working sync.WaitGroup
}

// startInPlace receives the descriptors of the processes in the images, and reads
// meanwhile what is to be registered with them.
func startInPlace(images *os.File, left map[int][]span, give func(pid int, uffd *os.File) error) (*inPlace, error) {
	p := &inPlace{
		give: give, imagesDir: images.Name(),
		plans: map[int]*plan{}, done: make(chan struct{}), planned: make(chan struct{}),
	}
	numbers, err := processesWithMemory(p.imagesDir)
	if err != nil {
		return nil, err
	}
	for _, pid := range numbers {
		p.plans[pid] = &plan{pid: pid, left: left[pid]}
	}
	if p.l, err = netconn.ListenIn("unixpacket", images, userfaultSocket); err != nil {
		return nil, fmt.Errorf("listening for userfaultfds: %w", err)
	}
	p.working.Go(func() {
		defer close(p.done)
		for range numbers {
			if err := p.receive(); err != nil {
				p.err = fmt.Errorf("receiving userfaultfds: %w", err)
				p.l.Close() // CRIU must not wait for what nobody takes
				return
			}
		}
	})
	p.working.Go(func() {
		defer close(p.planned)
		p.planErr = eachPlan(p.plans, func(l *plan) error { return l.read(p.imagesDir) })
	})
	return p, nil
}

// processesWithMemory lists the processes of an image that have memory: all but the dead.
func processesWithMemory(imagesDir string) ([]int, error) {
	names, err := filepath.Glob(filepath.Join(imagesDir, "mm-*.img"))
	if err != nil {
		return nil, fmt.Errorf("listing the images: %w", err)
	}
	var pids []int
	for _, name := range names {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(name), "mm-%d.img", &pid); err != nil || pid <= 0 {
			return nil, fmt.Errorf("%w: %s is of no process", ErrCorrupt, filepath.Base(name))
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// receive takes the userfaultfd of one process.
func (p *inPlace) receive() error {
	conn, err := p.l.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	pid, uffd, err := receiveNumbered(conn)
	if err != nil {
		return err
	}
	l := p.plans[pid]
	if l == nil || l.uffd != nil {
		uffd.Close()
		return fmt.Errorf("process %d sent a userfaultfd that nobody waits for", pid)
	}
	// The kernel says who has connected, by our numbers.
	peer, err := netconn.Peer(conn)
	if err == nil {
		l.host = int(peer.Pid)
		l.uffd, err = netconn.Duplicate(uffd)
	}
	if err != nil {
		uffd.Close()
		return fmt.Errorf("taking the userfaultfd of process %d: %w", pid, err)
	}
	if err := p.give(pid, uffd); err != nil {
		p.refused = fmt.Errorf("passing on the userfaultfd of process %d: %w", pid, err)
		return p.refused
	}
	return nil
}

// receiveNumbered reads a number and the descriptor that comes with it.
func receiveNumbered(conn *net.UnixConn) (pid int, file *os.File, err error) {
	var number [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(number[:], oob)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	if file, err = netconn.PassedFile(oob[:oobn], "userfaultfd"); err != nil {
		return 0, nil, err
	}
	if n != len(number) || file == nil {
		if file != nil {
			file.Close()
		}
		return 0, nil, errors.New("a process ended, or could not make its userfaultfd")
	}
	return int(int32(binary.NativeEndian.Uint32(number[:]))), file, nil
}

// register is called at the hold: it takes the last descriptors and registers all
// memory that was left out. The error wraps ErrTouched if some of it is lost.
func (p *inPlace) register(ctx context.Context, criu <-chan struct{}) error {
	// All processes are there, and have connected or never will.
	if err := p.l.SetDeadline(time.Now().Add(lastUserfault)); err != nil {
		return fmt.Errorf("waiting for userfaultfds: %w", err)
	}
	for _, c := range []chan struct{}{p.done, p.planned} {
		select {
		case <-c:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-criu:
			return errWorkerGone
		}
	}
	if err := errors.Join(p.err, p.planErr); err != nil {
		return err
	}
	return eachPlan(p.plans, (*plan).register)
}

// close ends it. It returns what the receiver of the descriptors failed with, if that
// is what the restore failed for.
func (p *inPlace) close() (refused, err error) {
	p.l.Close()
	p.working.Wait()
	for _, l := range p.plans {
		if l.uffd != nil {
			l.uffd.Close()
		}
	}
	return p.refused, removeUserfaultSocket(p.imagesDir)
}

// removeUserfaultSocket also removes what a podd has left that was killed: images with
// anything else among them are refused.
func removeUserfaultSocket(imagesDir string) error {
	if err := os.Remove(filepath.Join(imagesDir, userfaultSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the socket of userfaultfds: %w", err)
	}
	return nil
}
