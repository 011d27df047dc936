package checkpoint

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// inventory counts the processes and TCP connections of an image: the entries
// of pstree.img, and the files that CRIU writes one per connection.
func inventory(imagesDir string) (processes, connections int, err error) {
	if processes, err = countProcesses(imagesDir); err != nil {
		return 0, 0, err
	}
	entries, err := os.ReadDir(imagesDir)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the image: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "tcp-stream-") {
			connections++
		}
	}
	return processes, connections, nil
}

// countProcesses counts those of an image, dead ones too.
func countProcesses(imagesDir string) (int, error) {
	f, err := os.Open(filepath.Join(imagesDir, "pstree.img"))
	if err != nil {
		return 0, fmt.Errorf("reading the image: %w", err)
	}
	defer f.Close()
	n, err := countEntries(f)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return n, nil
}

// countEntries counts the messages of one CRIU image file: two magic numbers,
// then each message after its size as a little-endian u32.
func countEntries(r io.Reader) (int, error) {
	in := bufio.NewReader(r)
	if _, err := in.Discard(8); err != nil {
		return 0, err
	}
	var size [4]byte
	for n := 0; ; n++ {
		_, err := io.ReadFull(in, size[:])
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, in, int64(binary.LittleEndian.Uint32(size[:]))); err != nil {
			return 0, noEOF(err)
		}
	}
}
