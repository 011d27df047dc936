package cli

import (
	"bytes"
	"fmt"
	"strings"

	"podd/pod"
)

// defaultDetachKeys are podman's and docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads a comma-separated sequence of single characters and
// ctrl-X, X being a letter or one of @[\]^_. Empty means that no keys detach.
func parseDetachKeys(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	var keys []byte
	for _, key := range strings.Split(text, ",") {
		control, isControl := strings.CutPrefix(key, "ctrl-")
		switch {
		case isControl && len(control) == 1 && strings.ContainsAny(strings.ToUpper(control), `ABCDEFGHIJKLMNOPQRSTUVWXYZ@[\]^_`):
			keys = append(keys, strings.ToUpper(control)[0]&0x1f)
		case len(key) == 1:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("%w: detach keys %q: want characters or ctrl-LETTER, separated by commas", pod.ErrInvalid, text)
		}
	}
	return keys, nil
}

// detacher watches typed input for the detach keys.
type detacher struct {
	keys    []byte
	matched int // how many of them the input ends with; they are held back
}

// feed takes input and returns what is to be passed on; detached is true when
// the keys are complete.
func (d *detacher) feed(input []byte) (output []byte, detached bool) {
	if len(d.keys) == 0 {
		return input, false
	}
	for _, b := range input {
		for d.matched > 0 && b != d.keys[d.matched] {
			// Not the keys after all: let go of what was held back, up to
			// where the sequence may have begun anew.
			again := border(d.keys[:d.matched])
			output = append(output, d.keys[:d.matched-again]...)
			d.matched = again
		}
		if b != d.keys[d.matched] {
			output = append(output, b)
			continue
		}
		if d.matched++; d.matched == len(d.keys) {
			d.matched = 0
			return output, true
		}
	}
	return output, false
}

// border is the length of the longest beginning of b, shorter than b, that b
// also ends with (Knuth, Morris and Pratt's failure function).
func border(b []byte) int {
	for n := len(b) - 1; n > 0; n-- {
		if bytes.HasSuffix(b, b[:n]) {
			return n
		}
	}
	return 0
}
