package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"podd/procfs"
)

// leftOutName is the image that says that there is memory which is not in the
// others, and where. CRIU knows nothing of it:
//
//	8 bytes "PODDLEFT"
//	        for each range, by process and start, as little-endian u64: the
//	        process's number in the pod, start, end
const (
	leftOutName  = "left-out.img"
	leftOutMagic = "PODDLEFT"
	leftOutEntry = 24
)

// errLeftOut means that an image alone does not make the pod.
var errLeftOut = errors.New("part of the pod's memory is not in the image, and nobody is there to fill it in")

// numbersInPod finds the numbers in the pod of the processes whose memory it is.
func numbersInPod(ranges []MemoryRange) (map[int]int, error) {
	numbers := map[int]int{}
	for _, r := range ranges {
		if numbers[r.PID] != 0 {
			continue
		}
		pids, err := procfs.NamespacePIDs(r.PID)
		if err != nil {
			return nil, fmt.Errorf("describing the memory that was left out: %w", err)
		}
		numbers[r.PID] = pids[len(pids)-1]
	}
	return numbers, nil
}

// markLeftOut writes leftOutName.
func markLeftOut(imagesDir string, ranges []MemoryRange, numbers map[int]int) error {
	b := []byte(leftOutMagic)
	for _, r := range ranges {
		for _, n := range []uint64{uint64(numbers[r.PID]), r.Start, r.End} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	if err := os.WriteFile(filepath.Join(imagesDir, leftOutName), b, 0o600); err != nil {
		return fmt.Errorf("marking the image as incomplete: %w", err)
	}
	return nil
}

// readLeftOut reads what was left out of an image, by process and ascending. known is
// false for an image of a podd that did not write it, nor kept from it what a restore
// touches.
func readLeftOut(imagesDir string) (left map[int][]span, known bool, err error) {
	b, err := os.ReadFile(filepath.Join(imagesDir, leftOutName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil // nothing
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading what was left out of the image: %w", err)
	}
	b, known = bytes.CutPrefix(b, []byte(leftOutMagic))
	if !known {
		return nil, false, nil
	}
	if len(b)%leftOutEntry != 0 || len(b) > maxLeftOut*leftOutEntry {
		return nil, false, fmt.Errorf("%w: %s of %d bytes", ErrCorrupt, leftOutName, len(b))
	}
	left = map[int][]span{}
	for ; len(b) > 0; b = b[leftOutEntry:] {
		pid := int(binary.LittleEndian.Uint64(b))
		s := span{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
		of := left[pid]
		if s.start%pageSize != 0 || s.end%pageSize != 0 || s.start >= s.end || len(of) > 0 && s.start < of[len(of)-1].end {
			return nil, false, fmt.Errorf("%w: %s has memory from %#x to %#x of process %d", ErrCorrupt, leftOutName, s.start, s.end, pid)
		}
		left[pid] = append(of, s)
	}
	return left, true, nil
}

// checkComplete refuses a marked image.
func checkComplete(imagesDir string) error {
	_, err := os.Lstat(filepath.Join(imagesDir, leftOutName))
	if err == nil {
		return errLeftOut
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("reading the image: %w", err)
}
