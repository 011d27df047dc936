package datapath

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// discardsFile has the neighbour table's statistics, a line for each processor.
// Only the first network namespace has it.
const discardsFile = "/proc/net/stat/arp_cache"

// Discards is how many packets the kernel has dropped, since the machine's
// start and in all namespaces, because a neighbour's queue was full or the
// neighbour never answered. A hold that grows out of its queue counts here, and
// it is all that the kernel tells of queues. The error wraps fs.ErrNotExist
// where it tells nothing.
func Discards() (uint64, error) {
	data, err := os.ReadFile(discardsFile)
	if err != nil {
		return 0, fmt.Errorf("reading neighbour statistics: %w", err)
	}
	return parseDiscards(string(data))
}

func parseDiscards(text string) (total uint64, err error) {
	header, rest, _ := strings.Cut(text, "\n")
	column := slices.Index(strings.Fields(header), "unresolved_discards")
	if column < 0 {
		return 0, fmt.Errorf("reading neighbour statistics: no discards among %q", header)
	}
	for line := range strings.Lines(rest) {
		fields := strings.Fields(line)
		if column >= len(fields) {
			return 0, fmt.Errorf("reading neighbour statistics: short line %q", line)
		}
		n, err := strconv.ParseUint(fields[column], 16, 64)
		if err != nil {
			return 0, fmt.Errorf("reading neighbour statistics: %w", err)
		}
		total += n
	}
	return total, nil
}
