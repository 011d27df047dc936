package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"podd/procfs"
)

// A program has private pages of its files: what the dynamic linker has put in order in
// its libraries (RELRO), and their variables. Nobody can fill them in after a restore,
// for there is no userfaultfd for mappings of files, so CRIU carries them: 160 MiB
// for a desktop of 38 processes, nearly all of which never changes again. So they
// are sent while the pod runs, and of those that CRIU dumps unchanged only the
// addresses follow.

// aheadPages knows what was sent ahead: a digest of each page, by its memory image and
// address. What was sent is not kept.
type aheadPages struct {
	digests map[pageOfImage]xxh3.Uint128
	// seed keeps anybody from making a page with the digest of another.
	seed uint64
	// bytes is how much was sent.
	bytes int64
}

type pageOfImage struct{ image, addr uint64 }

func newAheadPages() *aheadPages {
	return &aheadPages{digests: map[pageOfImage]xxh3.Uint128{}, seed: rand.Uint64()}
}

// has reports whether the page was sent ahead with this content.
func (a *aheadPages) has(image, addr uint64, content []byte) bool {
	digest, sent := a.digests[pageOfImage{image, addr}]
	return sent && digest == xxh3.Hash128Seed(content, a.seed)
}

// run returns how many bytes at the beginning of content, pages of f, were all sent
// ahead, or all not.
func (a *aheadPages) run(f frame, content []byte) (n int, known bool) {
	if a == nil || f.kind() != imageTask {
		return len(content), false
	}
	known = a.has(f.image, f.addr, content[:pageSize])
	for n = pageSize; n < len(content); n += pageSize {
		if a.has(f.image, f.addr+uint64(n), content[n:n+pageSize]) != known {
			break
		}
	}
	return n, known
}

// sendAhead sends the private pages of files of all processes of a cgroup that run. A
// process that ends or changes meanwhile is none to wait for: what was not sent
// comes with the dump.
func sendAhead(ctx context.Context, w io.Writer, cgroup string) (*aheadPages, error) {
	list, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("listing processes whose pages are sent ahead: %w", err)
	}
	a := newAheadPages()
	for word := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("malformed list of processes: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		err = a.sendProcess(w, pid)
		if errors.Is(err, errSendPages) {
			return nil, err
		}
	}
	return a, nil
}

// sendProcess sends the pages of one process. An error that is not errSendPages says that
// no more of them can be had.
func (a *aheadPages) sendProcess(w io.Writer, pid int) error {
	pids, err := procfs.NamespacePIDs(pid)
	if err != nil {
		return err
	}
	image := uint64(pids[len(pids)-1])<<8 | imageTask
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	buf := make([]byte, pageBuffer)
	var sent uint64
	for line := range bytes.Lines(maps) {
		start, end, ok := privateFileMapping(line)
		// The process may change its mappings while they are read.
		if start = max(start, sent); !ok || start >= end {
			continue
		}
		sent = end
		runs, err := privatePages(pagemap, start, end)
		if err != nil {
			return err
		}
		for _, r := range runs {
			for at := r.start; at < r.end; {
				n, err := readPages(pid, at, buf[:min(uint64(len(buf)), r.end-at)])
				if err != nil || n == 0 {
					break // it can't be read, or is gone
				}
				if err := a.send(w, image, at, buf[:n]); err != nil {
					return err
				}
				at += uint64(n)
			}
		}
	}
	return nil
}

func (a *aheadPages) send(w io.Writer, image, addr uint64, content []byte) error {
	f := frame{op: opAhead, flags: pagePresent, pages: uint64(len(content) / pageSize), addr: addr, image: image}
	if _, err := w.Write(f.append(make([]byte, 0, headerSize))); err != nil {
		return passError(err)
	}
	if _, err := w.Write(content); err != nil {
		return passError(err)
	}
	for at := 0; at < len(content); at += pageSize {
		a.digests[pageOfImage{image, addr + uint64(at)}] = xxh3.Hash128Seed(content[at:at+pageSize], a.seed)
	}
	a.bytes += int64(len(content))
	return nil
}

// privateFileMapping parses a line of maps (proc_pid_maps(5)). ok is true for a private,
// readable mapping of a file.
func privateFileMapping(line []byte) (start, end uint64, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) < 6 || len(fields[1]) != 4 || fields[1][0] != 'r' || fields[1][3] != 'p' || fields[5][0] != '/' {
		return 0, 0, false
	}
	first, last, _ := strings.Cut(string(fields[0]), "-")
	start, err1 := strconv.ParseUint(first, 16, 64)
	end, err2 := strconv.ParseUint(last, 16, 64)
	return start, end, err1 == nil && err2 == nil
}

// pageRegion is struct page_region of include/uapi/linux/fs.h.
type pageRegion struct{ start, end, categories uint64 }

// privatePages returns where a mapping of a file has pages that are not the file's: those
// that CRIU dumps.
func privatePages(pagemap *os.File, start, end uint64) ([]pageRegion, error) {
	// Categories of include/uapi/linux/fs.h.
	const isFile, isPresent, isSwapped = 1 << 2, 1 << 3, 1 << 4
	vec := make([]pageRegion, 256)
	var all []pageRegion
	for start < end {
		arg := pagemapScanArg{
			start: start, end: end, vec: uintptr(unsafe.Pointer(&vec[0])), vecLen: uint64(len(vec)),
			categoryInverted: isFile, categoryMask: isFile, categoryAnyOfMask: isPresent | isSwapped, returnMask: isPresent | isSwapped,
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(vec)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return nil, os.NewSyscallError("PAGEMAP_SCAN", errno)
		}
		all = append(all, vec[:n]...)
		if arg.walkEnd <= start {
			break
		}
		start = arg.walkEnd
	}
	return all, nil
}

// readPages reads whole pages, as many as there are in one piece.
func readPages(pid int, addr uint64, b []byte) (int, error) {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	return n - n%pageSize, err
}
