package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podd/pod"
)

func TestID(t *testing.T) {
	if id := ID("alice", 12); id != "alice.12" {
		t.Errorf("got %q", id)
	}
	name, epoch, ok := ParseID("alice.12")
	if name != "alice" || epoch != 12 || !ok {
		t.Errorf("got %q, %d, %v", name, epoch, ok)
	}
	for _, id := range []string{"", "alice", "alice.", ".1", "alice.01", "alice.-1", "alice.1.2", "Alice.1", "alice.18446744073709551616", "../x.1"} {
		if _, _, ok := ParseID(id); ok {
			t.Errorf("%q is taken for an ID", id)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2"}, nil, []string{"AB=3", "A=4", "C="})
	if want := []string{"A=4", "B=2", "AB=3", "C="}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFiles(t *testing.T) {
	config := Config{Spec: pod.Spec{Name: "alice"}, Address: netip.MustParseAddr("100.64.0.9"), Nameserver: pod.Gateway, Search: "pods.internal"}
	if got, want := string(hostsFile(config)), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n100.64.0.9\talice.pods.internal alice\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := string(resolvFile(config)), "nameserver 169.254.1.1\nsearch pods.internal\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(resolvFile(Config{})); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestCheckDestination(t *testing.T) {
	for _, destination := range []string{"/proc", "/proc/sys/x", "/sys", "/dev/shm", "/.podd", "/.podd/init"} {
		if err := checkDestination(destination); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: got %v", destination, err)
		}
	}
	for _, destination := range []string{"/data", "/devices", "/process", "/tmp/x", "/.poddx"} {
		if err := checkDestination(destination); err != nil {
			t.Errorf("%s: got %v", destination, err)
		}
	}
}

func TestEncodeRequest(t *testing.T) {
	got, err := encodeRequest([]string{"a", "", "bc"})
	if err != nil || string(got) != "a\x00\x00bc\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, words := range [][]string{{"a\x00b"}, {strings.Repeat("x", maxRequest)}} {
		if _, err := encodeRequest(words); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
}

// Every name that something is bound or masked at must be one that CRIU is told
// of, and every source must be in the container's own places.
func TestExternalMounts(t *testing.T) {
	r := &Runtime{opts: Options{StateDir: "/state", RunDir: "/run/x", CgroupParent: "/parent"}}
	c := r.container("alice.1")
	c.record.Config.Spec.Volumes = []pod.Volume{
		{Source: "data", Destination: "/b/c", Policy: pod.VolumeMove},
		{Source: "/srv/x", Destination: "/b", Policy: pod.VolumeShare},
		{Source: "/srv/y", Destination: "/z", Policy: pod.VolumeCopy},
	}
	external := c.ExternalMounts()
	for destination, want := range map[string]string{
		"/dev": "/run/x/containers/alice.1/volatile/dev", "/tmp": "/run/x/containers/alice.1/volatile/tmp",
		"/run": "/run/x/containers/alice.1/volatile/run", "/proc/kcore": "/run/x/containers/alice.1/volatile/dev/null",
		"/proc/acpi": "/run/x/containers/alice.1/masked", "/b/c": "/state/pods/alice.1/volumes/data", "/b": "/srv/x", "/z": "/srv/y",
	} {
		if got := external[destination]; got != want {
			t.Errorf("%s: got %q, want %q", destination, got, want)
		}
	}
	if _, ok := external[cgroupRoot]; !ok {
		t.Error("the cgroup mount is missing")
	}
	var order []string
	for _, m := range c.binds() {
		order = append(order, m.Destination)
	}
	if slices.Index(order, "/b") > slices.Index(order, "/b/c") {
		t.Errorf("a volume inside another is mounted first: %q", order)
	}
	want := []Tree{
		{"upper", "/state/pods/alice.1/upper", pod.VolumeMove}, {"volatile", "/run/x/containers/alice.1/volatile", pod.VolumeMove},
		{"volume:/b/c", "/state/pods/alice.1/volumes/data", pod.VolumeMove}, {"volume:/z", "/srv/y", pod.VolumeCopy},
	}
	if got := c.Trees(); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestIsMount(t *testing.T) {
	for path, want := range map[string]bool{"/proc": true, "/proc/self": false, t.TempDir(): false, "/no/such": false} {
		if got := isMount(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// segments writes a log in segments of the given size, without the first ones.
func segments(t *testing.T, text string, size, drop int) *logStream {
	t.Helper()
	dir := t.TempDir()
	for base := drop * size; base < len(text); base += size {
		name := filepath.Join(dir, fmt.Sprintf("stdout.%d", base))
		if err := os.WriteFile(name, []byte(text[base:min(len(text), base+size)]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &logStream{dir: f, name: "stdout"}
}

func readAll(t *testing.T, s *logStream) string {
	t.Helper()
	defer s.close()
	var all bytes.Buffer
	buf := make([]byte, 3)
	for {
		n, err := s.read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all.String()
		}
		all.Write(buf[:n])
	}
}

func TestLogStream(t *testing.T) {
	const text = "one\ntwo\nthree\n\nfive"
	for _, test := range []struct {
		drop int
		pos  int64
		want string
	}{
		{0, 0, text}, {0, 4, text[4:]}, {0, 5, text[5:]}, {2, 0, text[10:]}, {2, 12, text[12:]}, {0, 100, ""}, {9, 0, ""},
	} {
		s := segments(t, text, 5, test.drop)
		s.pos = test.pos
		if got := readAll(t, s); got != test.want {
			t.Errorf("without %d segments, at %d: got %q, want %q", test.drop, test.pos, got, test.want)
		}
	}
	for n, want := range []string{"", "five", "\nfive", "three\n\nfive", "two\nthree\n\nfive", text, text} {
		s := segments(t, text, 5, 0)
		pos, err := s.tail(n)
		if err != nil {
			t.Fatal(err)
		}
		s.pos = pos
		if got := readAll(t, s); got != want {
			t.Errorf("the last %d lines: got %q, want %q", n, got, want)
		}
	}
}

func TestOpenIn(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for link, target := range map[string]string{
		"absolute": outside + "/secret", "relative": "../../../../../.." + outside + "/secret", "inside": "/file", "dir": outside, "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, name := range []string{"absolute", "relative", "dir/secret", "loop", "../../.." + outside + "/secret", "missing"} {
		for _, follow := range []bool{false, true} {
			if f, err := openRegular(dir, name, follow); err == nil {
				t.Errorf("%s (follow: %v): opened %s", name, follow, f.Name())
				f.Close()
			}
		}
	}
	for name, follow := range map[string]bool{"file": false, "/file": false, "../file": false, "inside": true} {
		f, err := openRegular(dir, name, follow)
		if err != nil {
			t.Errorf("%s (follow: %v): %v", name, follow, err)
			continue
		}
		f.Close()
	}
	if _, err := openRegular(dir, ".", false); err == nil {
		t.Error("opened a directory as a file")
	}
}

func TestProcessIdentity(t *testing.T) {
	p, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		p    *process
		want bool
	}{
		{p, true}, {nil, false},
		{&process{p.PID, p.StartTime + 1, p.Boot}, false},
		{&process{p.PID, p.StartTime, "another boot"}, false},
		{&process{1 << 30, p.StartTime, p.Boot}, false},
	} {
		if got, err := test.p.exists(); err != nil || got != test.want {
			t.Errorf("%+v: got %v, %v", test.p, got, err)
		}
	}
}
