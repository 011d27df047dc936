package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	poddv1 "podd/api/podd/v1"
)

// process is a command that runs nowhere:
//
//	echo WORD...      writes the words
//	fail CODE WORD... writes the words to standard error and exits with CODE
//	count N           writes N numbered lines
//	cat               writes its input until that ends, and exits with 0
//	hopcat            is cat, and its pod moves after every 100,000 bytes
//	size              writes every size that its terminal gets
//	sleep             runs until a signal ends it
type process struct {
	command []string
	tty     bool
	hops    *hops

	mu             sync.Mutex
	changed        chan struct{} // closed when anything below changes
	stdout, stderr []byte
	ended          bool
	code           int
	sinceHop       int
	sent           *poddv1.OutputPosition
}

// hops counts the moves of a pod.
type hops struct {
	mu sync.Mutex
	n  int
}

func (h *hops) hop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
}

func (h *hops) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}

// output is what follow says.
type output struct {
	stdout, stderr []byte
	position       *poddv1.OutputPosition
	moved, exited  bool
	code           int
}

func newProcess(command []string, tty bool) *process {
	return &process{command: command, tty: tty, changed: make(chan struct{}), hops: &hops{}, sent: &poddv1.OutputPosition{}}
}

func (p *process) start() {
	words := strings.Join(p.command[min(1, len(p.command)):], " ")
	p.change(func() {
		switch p.command[0] {
		case "echo":
			p.stdout = []byte(words + "\n")
			p.ended = true
		case "fail":
			code, text, _ := strings.Cut(words, " ")
			p.stderr = []byte(text + "\n")
			p.code, _ = strconv.Atoi(code)
			p.ended = true
		case "count":
			n, _ := strconv.Atoi(words)
			for i := range n {
				p.stdout = fmt.Appendf(p.stdout, "%d\n", i+1)
			}
			p.ended = true
		}
	})
}

func (p *process) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *process) signal(number int) {
	p.change(func() {
		if !p.ended {
			p.ended, p.code = true, 128+number
		}
	})
}

func (p *process) resize(w *poddv1.WindowSize) {
	if w == nil || p.command[0] != "size" {
		return
	}
	p.change(func() { p.stdout = fmt.Appendf(p.stdout, "%dx%d\r\n", w.GetColumns(), w.GetRows()) })
}

func (p *process) wait(ctx context.Context) (int, error) {
	for {
		p.mu.Lock()
		ended, code, changed := p.ended, p.code, p.changed
		p.mu.Unlock()
		if ended {
			return code, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (p *process) position() *poddv1.OutputPosition {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &poddv1.OutputPosition{Stdout: int64(len(p.stdout)), Stderr: int64(len(p.stderr))}
}

func (p *process) relayed() *poddv1.OutputPosition {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

func (p *process) relay(position *poddv1.OutputPosition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = position
}

// tail is where the last n lines begin.
func (p *process) tail(n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := len(p.stdout)
	if n < 0 {
		return 0
	}
	for ; n > 0 && at > 0; n-- {
		at = bytes.LastIndexByte(p.stdout[:at-1], '\n') + 1
	}
	return int64(at)
}

// follow sends the output from a position on, then how it ended.
// hop is the number of hops before any input came that may bring the next.
func (p *process) follow(ctx context.Context, from *poddv1.OutputPosition, hop int, untilEnd bool, send func(output) error) error {
	out, err := int(from.GetStdout()), int(from.GetStderr())
	for {
		p.mu.Lock()
		stdout, stderr := bytes.Clone(p.stdout[out:]), bytes.Clone(p.stderr[err:])
		ended, code, changed := p.ended, p.code, p.changed
		p.mu.Unlock()
		moved := p.hops.count() != hop
		var say []output
		if len(stdout) > 0 {
			out += len(stdout)
			say = append(say, output{stdout: stdout, position: &poddv1.OutputPosition{Stdout: int64(out), Stderr: int64(err)}})
		}
		if len(stderr) > 0 {
			err += len(stderr)
			say = append(say, output{stderr: stderr, position: &poddv1.OutputPosition{Stdout: int64(out), Stderr: int64(err)}})
		}
		position := &poddv1.OutputPosition{Stdout: int64(out), Stderr: int64(err)}
		switch {
		case ended && untilEnd:
			say = append(say, output{exited: true, code: code, position: position})
		case moved:
			say = append(say, output{moved: true, position: position})
		}
		for _, o := range say {
			if o.exited || o.stdout != nil || o.stderr != nil || o.moved {
				if err := send(o); err != nil {
					return err
				}
			}
		}
		if ended || moved || !untilEnd {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// input is one stream's way into a process.
type input struct {
	p        *process
	mu       sync.Mutex
	stopped  bool
	accepted uint64
}

func (p *process) input() *input { return &input{p: p} }

// stop takes no more and says how many bytes were taken.
func (in *input) stop() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stopped = true
	return in.accepted
}

func (in *input) feed(receive func() ([]byte, *poddv1.WindowSize, bool, error)) {
	for {
		data, window, end, err := receive()
		if err != nil || !in.take(data, window, end) {
			return
		}
	}
}

func (in *input) take(data []byte, window *poddv1.WindowSize, end bool) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return false
	}
	in.accepted += uint64(len(data))
	in.p.resize(window)
	cat := strings.HasSuffix(in.p.command[0], "cat")
	in.p.change(func() {
		if cat {
			in.p.stdout = append(in.p.stdout, data...)
		}
		in.p.ended = in.p.ended || end && cat
		in.p.sinceHop += len(data)
		if in.p.command[0] == "hopcat" && in.p.sinceHop > 100_000 {
			in.p.sinceHop, in.stopped = 0, true
			in.p.hops.hop()
		}
	})
	return !in.stopped
}
