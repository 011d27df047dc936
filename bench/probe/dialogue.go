package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"podd/bench/workload"
)

// Counting is the dialogue with the server of package workload.
type Counting struct{}

// Request is the number n.
func (Counting) Request(b []byte, n uint64) []byte { return binary.LittleEndian.AppendUint64(b, n) }

// Answer wants the product of n and workload.Factor.
func (Counting) Answer(r *bufio.Reader, n uint64) error {
	got, err := readWord(r)
	if err != nil {
		return err
	}
	factor := uint64(workload.Factor)
	if want := n * factor; got != want {
		return fmt.Errorf("answer %d is %#x, want %#x", n, got, want)
	}
	return nil
}

// AskWord asks a server of package workload one of its questions. The probe
// must be stopped.
func AskWord(ctx context.Context, p *Probe, question uint64) (answer uint64, err error) {
	err = p.Ask(ctx, binary.LittleEndian.AppendUint64(nil, question), func(r *bufio.Reader) error {
		var err error
		answer, err = readWord(r)
		return err
	})
	return answer, err
}

func readWord(r *bufio.Reader) (uint64, error) {
	var word [8]byte
	_, err := io.ReadFull(r, word[:])
	return binary.LittleEndian.Uint64(word[:]), err
}

// Redis is a dialogue with redis: it increments Key, which must not exist
// before.
type Redis struct{ Key string }

// Request is INCR.
func (d Redis) Request(b []byte, _ uint64) []byte {
	return fmt.Appendf(b, "*2\r\n$4\r\nINCR\r\n$%d\r\n%s\r\n", len(d.Key), d.Key)
}

// Answer wants n+1.
func (d Redis) Answer(r *bufio.Reader, n uint64) error {
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if want := ":" + strconv.FormatUint(n+1, 10); strings.TrimSuffix(line, "\r\n") != want {
		return fmt.Errorf("redis answers %q, want %q", line, want)
	}
	return nil
}
