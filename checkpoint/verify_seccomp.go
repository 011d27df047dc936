package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"
	"google.golang.org/protobuf/proto"
)

const (
	// filterInstruction is the size of a struct sock_filter.
	filterInstruction = 8
	// maxInstructions is the kernel's BPF_MAXINSNS, for one filter.
	maxInstructions = 4096
	// maxFilters is how many a pod may have; each of a thread costs at every
	// system call.
	maxFilters = 1024

	// Flags of filters: SECCOMP_FILTER_FLAG_TSYNC and _LOG (linux/seccomp.h).
	filterTSYNC = 1 << 0
	filterLog   = 1 << 1
)

// readFilters reads the system call filters. A thread names one; that one may
// name the one below it, and so on.
func (v *verifier) readFilters() error {
	var err error
	if v.filters, err = readOne[seccomp.SeccompEntry](v, "seccomp.img", "SECCOMP"); err != nil {
		return err
	}
	list := v.filters.GetSeccompFilters()
	if len(list) > maxFilters {
		return fmt.Errorf("%w: %d system call filters", ErrLimit, len(list))
	}
	for i, f := range list {
		if n := len(f.GetFilter()); n == 0 || n%filterInstruction != 0 || n > maxInstructions*filterInstruction {
			return fmt.Errorf("%w: system call filter %d has %d bytes", ErrCorrupt, i, n)
		}
		if f.Prev != nil && f.GetPrev() >= uint32(len(list)) {
			return fmt.Errorf("%w: system call filter %d is above %d, which is not there", ErrCorrupt, i, f.GetPrev())
		}
		if f.GetFlags()&^(filterTSYNC|filterLog) != 0 {
			return fmt.Errorf("%w: system call filter %d has flags %#x", ErrForbidden, i, f.GetFlags())
		}
	}
	return nil
}

// checkFilters sees to it that every thread of a process has a filter, as CRIU
// restores it. Either each thread has its own, or all have the same; then only the
// first one's is in the image, to be given to the others too (TSYNC). The kernel
// refuses that where another thread has a filter already, and CRIU does not
// notice, so the two must not be mixed.
func (v *verifier) checkFilters(threads []*criucore.ThreadCoreEntry) error {
	without := 0
	for _, t := range threads {
		switch {
		case t.GetSeccompMode() == criucore.SeccompMode_disabled && t.SeccompFilter == nil:
			without++
		case t.GetSeccompMode() != criucore.SeccompMode_filter || t.SeccompFilter == nil:
			return fmt.Errorf("%w: a system call filter of mode %s", ErrForbidden, t.GetSeccompMode())
		}
	}
	if threads[0].SeccompFilter == nil || without != 0 && without != len(threads)-1 {
		return fmt.Errorf("%w: no system call filter", ErrForbidden)
	}
	for _, t := range threads {
		if t.SeccompFilter == nil {
			continue
		}
		c, err := v.follow(t.GetSeccompFilter())
		if err != nil {
			return err
		}
		if without > 0 && !c.forAll || without == 0 && len(threads) > 1 && c.forAll {
			return fmt.Errorf("%w: not every thread would get the system call filter", ErrForbidden)
		}
		v.chains[c.bottom] = v.chains[c.bottom] || !c.under
	}
	return nil
}

// imposeFilter sees to it that every thread is under the policy's filter. What
// the filters that came with it allow is of no importance then, for the strictest
// decides.
func (v *verifier) imposeFilter() error {
	list := v.filters.GetSeccompFilters()
	own := map[uint32]uint32{} // from flags to the filter with them
	for bottom, missing := range v.chains {
		if !missing {
			continue
		}
		if len(v.policy.SystemCallFilter) == 0 {
			return fmt.Errorf("%w: this host has no system call filter", ErrForbidden)
		}
		flags := list[bottom].GetFlags() & filterTSYNC
		index, ok := own[flags]
		if !ok {
			index = uint32(len(v.filters.SeccompFilters))
			own[flags] = index
			v.filters.SeccompFilters = append(v.filters.SeccompFilters,
				&seccomp.SeccompFilter{Filter: v.policy.SystemCallFilter, Flags: proto.Uint32(flags)})
		}
		list[bottom].Prev = proto.Uint32(index)
	}
	if len(own) == 0 {
		return nil
	}
	data, err := proto.Marshal(v.filters)
	if err != nil {
		return err
	}
	image := binary.LittleEndian.AppendUint32(nil, imageMagic)
	image = binary.LittleEndian.AppendUint32(image, uint32(magics["SECCOMP"]))
	image = binary.LittleEndian.AppendUint32(image, uint32(len(data)))
	f, err := v.root.OpenFile("seccomp.img", os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(image, data...)); err != nil {
		f.Close()
		return fmt.Errorf("writing seccomp.img: %w", err)
	}
	return f.Close()
}

// chain is what is known of the filters of a thread.
type chain struct {
	// bottom is the lowest.
	bottom uint32
	// under says that the policy's is among them.
	under bool
	// forAll says that they are meant for all threads of the process.
	forAll bool
}

// follow goes down a chain of filters.
func (v *verifier) follow(head uint32) (chain, error) {
	list := v.filters.GetSeccompFilters()
	if head >= uint32(len(list)) {
		return chain{}, fmt.Errorf("%w: system call filter %d is not there", ErrCorrupt, head)
	}
	c := chain{bottom: head, forAll: list[head].GetFlags()&filterTSYNC != 0}
	for range list {
		f := list[c.bottom]
		if (f.GetFlags()&filterTSYNC != 0) != c.forAll {
			return chain{}, fmt.Errorf("%w: system call filters partly for all threads", ErrForbidden)
		}
		c.under = c.under || v.isOwn(f.GetFilter())
		if f.Prev == nil {
			return c, nil
		}
		c.bottom = f.GetPrev()
	}
	return chain{}, fmt.Errorf("%w: a chain of system call filters has no end", ErrCorrupt)
}

// maxCompared is how many filters are compared with the policy's by what they do;
// a pod has only as many as there are programs in it that make their own.
const maxCompared = 16

// isOwn says whether a filter is the policy's. libcontainer leaves the order of
// some parts to chance, so two hosts' filters may be the same only in what they do.
func (v *verifier) isOwn(program []byte) bool {
	own := v.policy.SystemCallFilter
	if bytes.Equal(program, own) {
		return true
	}
	if len(program) != len(own) {
		return false
	}
	same, known := v.compared[string(program)]
	if !known && len(v.compared) < maxCompared {
		same = filterMeaning(program) == filterMeaning(own)
		v.compared[string(program)] = same
	}
	return same
}
