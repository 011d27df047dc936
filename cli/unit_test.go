package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"podd/pod"
)

func tree() *command { return (&podctl{}).commands() }

func TestFlagsMayStandAnywhere(t *testing.T) {
	for line, want := range map[string]string{
		"inspect alice -o json":                   "inspect -o json -- alice",
		"ps --context lab -a":                     "--context lab ps -a",
		"--context=lab ps":                        "--context=lab ps",
		"move ls -o wide alice":                   "move ls -o wide -- alice",
		"mv alice b --dry-run":                    "mv --dry-run -- alice b",
		"run -it --name x ls -l --rm":             "run -it --name x -- ls -l --rm",
		"run -d -- ls -- -l":                      "run -d -- ls -- -l",
		"run -itu root sh -c x":                   "run -itu root -- sh -c x",
		"exec -i alice ls -l":                     "exec -i -- alice ls -l",
		"exec alice -- ls --socket x":             "exec -- alice -- ls --socket x",
		"exec --env A=1 alice -i":                 "exec --env A=1 -- alice -i",
		"image import x - --host b":               "image import --host b -- x -",
		"stop -- -t":                              "stop -- -t",
		"logs -f alice --tail 3 --socket /s --xx": "--socket /s logs -f --tail 3 --xx -- alice",
	} {
		got := strings.Join(takeApart(tree(), strings.Fields(line)).words(), " ")
		if got != want {
			t.Errorf("%q becomes %q, want %q", line, got, want)
		}
	}
}

// Every command explains itself and shows how it is used.
func TestEveryCommandHasHelp(t *testing.T) {
	var check func(c *command)
	check = func(c *command) {
		var help bytes.Buffer
		p := &podctl{root: tree()}
		if err := p.printHelp(&help, c); err != nil {
			t.Fatal(err)
		}
		if c.usage == "" || c.description == "" || len(c.examples) == 0 {
			t.Errorf("podctl %s lacks a usage line, a description or examples", c.path())
		}
		if last := c.description[len(c.description)-1]; last != '.' {
			t.Errorf("podctl %s: the description does not end with a full stop", c.path())
		}
		for _, example := range c.examples {
			if !strings.Contains(example, "podctl") {
				t.Errorf("podctl %s: the example %q does not show podctl", c.path(), example)
			}
		}
		for line := range strings.Lines(c.description) {
			if len(line) > 82 {
				t.Errorf("podctl %s: the description's line %q is too long for a terminal", c.path(), line)
			}
		}
		if !strings.Contains(help.String(), "\nExamples:\n") || !strings.Contains(help.String(), "Usage: podctl "+c.path()) {
			t.Errorf("podctl %s: the help is incomplete:\n%s", c.path(), help.String())
		}
		if c.max != 0 && c.action != nil && c.parent != nil && (c.args == "" || len(c.completes) == 0) {
			t.Errorf("podctl %s takes arguments and does not say which", c.path())
		}
		for _, sub := range c.subcommands {
			check(sub)
		}
	}
	check(tree())
}

// The examples are command lines that podctl understands, as far as it can
// tell without asking podd.
func TestExamplesParse(t *testing.T) {
	var check func(c *command)
	check = func(c *command) {
		for _, example := range c.examples {
			for _, part := range strings.FieldsFunc(example, func(r rune) bool { return strings.ContainsRune("|<>()&$#", r) }) {
				words := strings.Fields(part)
				if len(words) == 0 || words[0] != "podctl" {
					continue
				}
				a := takeApart(tree(), words[1:])
				for i, flag := range a.flags {
					if strings.HasPrefix(flag, "-") && i == 0 {
						if found, _ := findFlag(a.command, flag); found == nil {
							t.Errorf("%q: unknown option %s", example, flag)
						}
					}
				}
				if a.command.action == nil {
					t.Errorf("%q names no command", example)
				} else if err := a.command.checkArgs(a.args); err != nil && !strings.Contains(example, "$(") {
					t.Errorf("%q: %v", example, err)
				}
			}
		}
		for _, sub := range c.subcommands {
			check(sub)
		}
	}
	check(tree())
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseDetachKeys(defaultDetachKeys)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		keys     string
		input    []string // as it arrives
		want     string
		detached bool
	}{
		{string(keys), []string{"abc"}, "abc", false},
		{string(keys), []string{"a\x10\x11b"}, "a", true},
		{string(keys), []string{"a\x10", "\x11"}, "a", true},
		{string(keys), []string{"\x10", "\x10\x11"}, "\x10", true},
		{string(keys), []string{"\x10", "x\x11"}, "\x10x\x11", false},
		{"aab", []string{"aaab"}, "a", true},
		{"abac", []string{"ab", "abac"}, "ab", true},
		{"", []string{"\x10\x11"}, "\x10\x11", false},
	} {
		d := detacher{keys: []byte(test.keys)}
		var got []byte
		detached := false
		for _, input := range test.input {
			var output []byte
			output, detached = d.feed([]byte(input))
			got = append(got, output...)
		}
		if string(got) != test.want || detached != test.detached {
			t.Errorf("keys %q, input %q: got %q, %v; want %q, %v", test.keys, test.input, got, detached, test.want, test.detached)
		}
	}
	if keys, err := parseDetachKeys("ctrl-@,x,ctrl-]"); err != nil || !bytes.Equal(keys, []byte{0, 'x', 0x1d}) {
		t.Errorf("got %v, %v", keys, err)
	}
	if _, err := parseDetachKeys("ctrl-!"); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("ctrl-! is accepted: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{"TERM": 15, "sigterm": 15, "9": 9, "usr1": unix.SIGUSR1} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "65", "WHAT"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{
		"/run/x.sock": "unix:///run/x.sock", "unix:///run/x.sock": "unix:///run/x.sock",
		"https://10.0.0.1:7443": "https://10.0.0.1:7443", "https://[::1]:7443/": "https://[::1]:7443",
	} {
		if got, err := parseAddress(text); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "relative", "https://host", "http://host:1", "tcp://host:1", "https://host:1/path", "unix://x/y"} {
		if got, err := parseAddress(text); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q is taken for %s", text, got)
		}
	}
}

// podd is asked by default, and podproxy where there is no podd.
func TestLocalAddress(t *testing.T) {
	dir := t.TempDir()
	podd, podproxy := filepath.Join(dir, "podd.sock"), filepath.Join(dir, "podproxy.sock")
	for _, test := range []struct{ made, want string }{{"", podd}, {podproxy, podproxy}, {podd, podd}} {
		if test.made != "" {
			if err := os.WriteFile(test.made, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := localAddress(podd, podproxy); got.location != test.want {
			t.Errorf("with %q made: %s, want %s", test.made, got, test.want)
		}
	}
}

func TestConfigIsPrivateAndRestoresThePreviousContext(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	err := editConfig(func(c *config) error {
		c.set("site", contextConfig{Hosts: []string{"https://h:1"}})
		c.Current = "site"
		c.set("lab", contextConfig{Host: "unix:///s", Previous: c.Current})
		c.Current = "lab"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "podctl", "config.toml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file is %v, %v; want mode 0600", info.Mode(), err)
	}
	if err := editConfig(func(c *config) error { c.remove("lab"); return nil }); err != nil {
		t.Fatal(err)
	}
	got, err := loadConfig()
	want := &config{Current: "site", Contexts: map[string]contextConfig{"site": {Hosts: []string{"https://h:1"}}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
}

func TestGeneratedNamesAreValid(t *testing.T) {
	for _, command := range []string{"/usr/bin/Redis_Server", "...", "a", strings.Repeat("x", 100), "ünï", "-x-"} {
		if name := generateName(pod.Spec{Command: []string{command}}); pod.ValidateName(name) != nil {
			t.Errorf("%q gives the name %q: %v", command, name, pod.ValidateName(name))
		}
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	cause := errors.New("cause")
	a := newAttempts()
	a.limit = 0
	a.begin()
	if err := a.wait(context.Background(), cause); err != nil {
		t.Fatalf("the first failure is final: %v", err)
	}
	if err := a.wait(context.Background(), cause); !errors.Is(err, cause) {
		t.Fatalf("got %v, want an end with the cause", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(signalError{unix.SIGINT})
	if err := newAttempts().wait(ctx, cause); !errors.Is(err, signalError{unix.SIGINT}) {
		t.Fatalf("got %v, want the context's cause", err)
	}
}

func TestInputQueueSendsAgainWhatDidNotArrive(t *testing.T) {
	q := newInputQueue()
	q.put([]byte("abcdef"))
	q.end()
	stream := q.begin()
	chunk, _, _ := q.take(stream)
	if string(chunk) != "abcdef" {
		t.Fatalf("got %q", chunk)
	}
	if err := q.rewind(2); err != nil {
		t.Fatal(err)
	}
	next := q.begin()
	if _, _, ok := q.take(stream); ok {
		t.Error("the first stream's sender goes on")
	}
	if chunk, _, _ = q.take(next); string(chunk) != "cdef" {
		t.Errorf("got %q, want what did not arrive", chunk)
	}
	if _, end, _ := q.take(next); !end {
		t.Error("the end of input is lost")
	}
	if err := q.rewind(5); err == nil {
		t.Error("more arrived than was sent, and nobody minds")
	}
}

func TestInputQueueForgetsOldInput(t *testing.T) {
	q := newInputQueue()
	stream := q.begin()
	block := make([]byte, inputChunk)
	for range 4 * inputKept / inputChunk {
		q.put(block)
		q.take(stream)
	}
	if len(q.data) > 2*inputKept {
		t.Errorf("%d bytes are kept, want at most %d", len(q.data), 2*inputKept)
	}
	if err := q.rewind(0); err == nil {
		t.Error("input that was forgotten can't be sent again, and nobody minds")
	}
}

func TestDurationsAndSizes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 310 * time.Microsecond: "0.31 ms", 31200 * time.Microsecond: "31.2 ms",
		812 * time.Millisecond: "812 ms", 1500 * time.Millisecond: "1.50 s", 90 * time.Second: "1m30s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%d ns: %q, want %q", d, got, want)
		}
	}
	if got := formatBytes(64 << 20); got != "64 MiB" {
		t.Errorf("got %q", got)
	}
	if text, err := milliseconds(31234567).MarshalJSON(); err != nil || string(text) != "31.235" {
		t.Errorf("got %s, %v", text, err)
	}
	if got := criuVersion(40201); got != "4.2.1" {
		t.Errorf("got %q", got)
	}
}

// clock is time that passes when it is told to.
type clock struct{ at time.Time }

func (c *clock) now() time.Time       { return c.at }
func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }
func (c *clock) ms(n int)             { c.pass(time.Duration(n) * time.Millisecond) }
func golden(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// showMove plays a move to a display.
func showMove(p *progress, c *clock) {
	p.update(pod.StagePreflight, 0, 0)
	c.ms(12)
	p.update(pod.StageReserve, 0, 0)
	c.ms(8)
	p.update(pod.StagePresync, 0, 96<<20)
	c.ms(500)
	p.update(pod.StagePresync, 40<<20, 96<<20)
	c.ms(100)
	p.tick()
	c.ms(700)
	p.update(pod.StagePresync, 96<<20, 96<<20)
	p.update(pod.StageDump, 0, 0)
	c.ms(30)
	p.update(pod.StagePresync, 97<<20, 0) // late, and not the last stage
	p.finish(true)
}

func TestProgressGolden(t *testing.T) {
	for _, test := range []struct {
		file    string
		display progress
	}{
		{"progress-live", progress{live: true}},
		{"progress-narrow", progress{live: true, width: 24}},
		{"progress-plain", progress{}},
		{"progress-hidden", progress{hidden: true}},
	} {
		t.Run(test.file, func(t *testing.T) {
			var out bytes.Buffer
			c := &clock{at: time.Unix(0, 0)}
			display := test.display
			display.heading = "moving alice to b"
			display.w, display.now = &out, c.now
			showMove(&display, c)
			got := strings.NewReplacer("\x1b", "^[", "\r", "^M").Replace(out.String())
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(filepath.Join("testdata", "golden", test.file), []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(golden(t, test.file), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A failure in one place reads the same everywhere: what failed, why, what next.
func TestErrorsAreExplained(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
		code int
	}{
		{fmt.Errorf("stopping x: %w: host b", pod.ErrUnavailable), "podctl: stopping x: unavailable: host b\nhint: podctl host ls shows which hosts are alive\n", 125},
		{fmt.Errorf("moving x: %w", pod.ErrConflict), "podctl: moving x: conflict\nhint: podctl move ls shows", 125},
		{errors.New(`exec: "x": executable file not found in $PATH`), "podctl: exec:", 127},
		{errors.New("exec /x: permission denied"), "podctl: exec", 126},
		{exitStatus(7), "", 7},
		{nil, "", 0},
	} {
		var stderr bytes.Buffer
		p := &podctl{stderr: &stderr, hinted: map[string]bool{}}
		if code := p.exitCode(test.err); code != test.code || !strings.HasPrefix(stderr.String(), test.want) {
			t.Errorf("%v: exit code %d and %q, want %d and %q", test.err, code, stderr.String(), test.code, test.want)
		}
	}
}

func TestLabContextIsSelectedOnce(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, host := range []string{"unix:///one", "unix:///two"} { // the second after a crash of the first
		if err := selectLab(host); err != nil {
			t.Fatal(err)
		}
	}
	got, err := loadConfig()
	want := &config{Current: "lab", Contexts: map[string]contextConfig{"lab": {Host: "unix:///two"}}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
}
