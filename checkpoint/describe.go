package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// Of what CRIU asks the kernel about a process, most is about its mappings: smaps, of which it
// reads two lines in twenty-four, and for each mapping whether it is of a file, and how that was
// opened. podd asks beside it, on another processor, and is ahead of it soon: it has
// nothing else to do about a process. Where it is late CRIU asks itself.

// mappedFile is what is known of the file of a mapping.
type mappedFile struct {
	// start and end are those of the mapping.
	start, end uint64
	// mode are the permissions of its link in /proc/PID/map_files, with mappedPlain
	// for an ordinary file; 0 if it is of no file.
	mode uint64
}

// mappedPlain is a flag beside the permissions: the private mapping is of an ordinary file that has a
// name. Where such a file may be anything, as on an overlay, CRIU opens it to see what it is, and the
// file below with it (criu/proc_parse.c, vma_get_mapfile).
const mappedPlain = 1 << 16

// plain reports whether a mapping is of an ordinary file that has a name.
func plain(m procfs.Mapping) bool {
	special := func(prefix string) bool { return strings.HasPrefix(m.Name, prefix) }
	return !m.Shared && m.Inode != 0 && strings.HasPrefix(m.Name, "/") && !strings.HasSuffix(m.Name, " (deleted)") &&
		!slices.ContainsFunc([]string{"/memfd:", "/SYSV", "/[", "/dev/"}, special)
}

// describeLarge tells CRIU of the mappings of processes of which most is left out: what smaps
// says of these takes long to read, so their flags were read before the freeze.
func (d *Dump) describeLarge(ranges []MemoryRange) (described map[int]bool) {
	left := map[int]uint64{}
	if d.shared != nil {
		left = d.shared.mapped()
	}
	for _, r := range ranges {
		left[r.PID] += r.End - r.Start
	}
	described = map[int]bool{}
	for pid, size := range left {
		flags, known := d.flags[pid]
		if !known || size < textFrom {
			continue
		}
		if text, ok := flags.text(pid); ok && d.describe(pid, text) == nil {
			described[pid] = true
		}
	}
	return described
}

// describeOthers does it for all other processes, until ctx is done. One that can't be
// described is CRIU's to look at.
func (d *Dump) describeOthers(ctx context.Context, described map[int]bool) {
	if d.options.FreezeCgroup == "" {
		return
	}
	pids, err := procfs.CgroupProcesses(d.options.FreezeCgroup)
	if err != nil {
		d.log.Debug("CRIU gets no mappings described", "error", err)
		return
	}
	// About the order that CRIU dumps them in.
	slices.Sort(pids)
	for _, pid := range pids {
		if ctx.Err() != nil {
			return
		}
		if described[pid] {
			continue
		}
		text, err := shortSmaps(pid)
		if err == nil {
			err = d.describe(pid, text)
		}
		if err != nil && !procfs.Gone(err) {
			d.log.Debug("CRIU gets no mappings described", "process", pid, "error", err)
		}
	}
}

// describe has CRIU know what smaps says, and the files.
func (d *Dump) describe(pid int, text []byte) error {
	files, err := mappedFiles(pid, text)
	if err == nil {
		d.leftOut.setText(pid, text, files)
	}
	return err
}

// shortSmaps returns what CRIU reads of a process's smaps: the mappings and their flags.
func shortSmaps(pid int) ([]byte, error) {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	defer smaps.Close()
	var text []byte
	lines := bufio.NewReaderSize(smaps, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if err == io.EOF && len(text) > 0 {
			return text, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading smaps: %w", err)
		}
		if isMapping(line) || bytes.HasPrefix(line, []byte("VmFlags:")) {
			text = append(text, line...)
		}
	}
}

// mappedFiles looks at the files of the mappings in a text of smaps. The parts of a library, which
// are private and follow each other, are of one open file: only the first of them is looked at.
// CRIU borrows its descriptor for the others, too (criu/proc_parse.c, vma_get_mapfile).
func mappedFiles(pid int, text []byte) ([]mappedFile, error) {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/map_files", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open map_files", err)
	}
	defer unix.Close(dir)
	var files []mappedFile
	var last procfs.Mapping
	for line := range bytes.Lines(text) {
		m, ok := procfs.ParseMapping(bytes.TrimSuffix(line, []byte("\n")))
		if !ok {
			continue
		}
		f := mappedFile{start: m.Start, end: m.End}
		switch {
		case m.Inode != 0 && !m.Shared && !last.Shared && m.Inode == last.Inode && m.Major == last.Major && m.Minor == last.Minor:
			f.mode = files[len(files)-1].mode
		// A file has a device, even one without a number.
		case m.Inode != 0 || m.Major != 0 || m.Minor != 0:
			var st unix.Stat_t
			switch err := unix.Fstatat(dir, fmt.Sprintf("%x-%x", m.Start, m.End), &st, unix.AT_SYMLINK_NOFOLLOW); err {
			case nil:
				if f.mode = uint64(st.Mode & 0o777); f.mode != 0 && plain(m) {
					f.mode |= mappedPlain
				}
			case unix.ENOENT:
			default:
				return nil, os.NewSyscallError("fstatat map_files", err)
			}
		}
		files, last = append(files, f), m
	}
	return files, nil
}
