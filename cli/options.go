package cli

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"podd/pod"
)

// parseMemory reads a size such as 512m or 2g, in bytes and binary units; empty
// means no limit.
func parseMemory(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil {
		return 0, fmt.Errorf("%w: memory limit %q: want a number and a unit, such as 512m or 2g", pod.ErrInvalid, text)
	}
	return n, nil
}

// parseCPUs reads a number of processors in thousandths; empty means no limit.
func parseCPUs(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if milli := math.Round(n * 1000); err == nil && milli >= 1 && milli <= 1e9 {
		return int64(milli), nil
	}
	return 0, fmt.Errorf("%w: CPU limit %q: want a number of processors, such as 1.5", pod.ErrInvalid, text)
}

// parsePIDs reads a number of processes; empty means the default.
func parsePIDs(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%w: process limit %q: want a whole number from 1", pod.ErrInvalid, text)
	}
	return n, nil
}

// environment reads --env-file and --env; later ones win where the pod's
// environment is made of them. A NAME without a value is passed on from
// podctl's own environment, if it is set there.
func environment(files, pairs []string) ([]string, error) {
	var out []string
	add := func(pair string) {
		if name, _, hasValue := strings.Cut(pair, "="); hasValue || name == "" {
			out = append(out, pair)
		} else if value, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+value)
		}
	}
	for _, file := range files {
		if err := eachLine(file, add); err != nil {
			return nil, fmt.Errorf("reading --env-file: %w", err)
		}
	}
	for _, pair := range pairs {
		add(pair)
	}
	return out, nil
}

// eachLine calls f with the lines of a file that are neither empty nor comments.
func eachLine(file string, f func(string)) error {
	opened, err := os.Open(file)
	if err != nil {
		return err
	}
	defer opened.Close()
	scanner := bufio.NewScanner(opened)
	for scanner.Scan() {
		line := strings.TrimLeft(strings.TrimSuffix(scanner.Text(), "\r"), " \t")
		if line != "" && line[0] != '#' {
			f(line)
		}
	}
	return scanner.Err()
}
