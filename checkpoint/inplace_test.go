package checkpoint

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestLeftOutImage(t *testing.T) {
	dir := t.TempDir()
	if left, known, err := readLeftOut(dir); err != nil || !known || len(left) != 0 {
		t.Errorf("without an image: %v, %v, %v", left, known, err)
	}
	me := os.Getpid()
	ranges := []MemoryRange{{me, 0x1000, 0x3000}, {me, 0x3000, 0x4000}}
	numbers, err := numbersInPod(ranges)
	if err == nil {
		err = markLeftOut(dir, ranges, numbers)
	}
	if err != nil {
		t.Fatal(err)
	}
	left, known, err := readLeftOut(dir)
	if err != nil || !known || len(left) != 1 {
		t.Fatalf("%v, %v, %v", left, known, err)
	}
	for _, spans := range left {
		if !slices.Equal(spans, []span{{0x1000, 0x3000}, {0x3000, 0x4000}}) {
			t.Errorf("read %v", spans)
		}
	}
	if err := checkComplete(dir); !errors.Is(err, errLeftOut) {
		t.Errorf("error is %v", err)
	}

	entry := func(numbers ...uint64) string {
		b := []byte(leftOutMagic)
		for _, n := range numbers {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
		return string(b)
	}
	for name, content := range map[string]string{
		"cut off":         entry(1, 0x1000),
		"empty range":     entry(1, 0x1000, 0x1000),
		"backwards":       entry(1, 0x3000, 0x1000),
		"no whole page":   entry(1, 0x1000, 0x1800),
		"overlap":         entry(1, 0x1000, 0x3000, 1, 0x2000, 0x4000),
		"not in order":    entry(1, 0x5000, 0x6000, 1, 0x1000, 0x2000),
		"too many ranges": entry(make([]uint64, 3*(maxLeftOut+1))...),
	} {
		if err := os.WriteFile(filepath.Join(dir, leftOutName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readLeftOut(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, leftOutName), []byte("4096 bytes of memory are not here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, known, err := readLeftOut(dir); known || err != nil {
		t.Errorf("of an older podd: %v, %v", known, err)
	}
}

func TestPageSpans(t *testing.T) {
	var data []byte
	add := func(entry []byte) {
		data = binary.LittleEndian.AppendUint32(data, uint32(len(entry)))
		data = append(data, entry...)
	}
	add(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7))
	for _, s := range []span{{0x1000, 0x3000}, {0x3000, 0x4000}, {0x7000, 0x8000}} {
		e := appendVarint(nil, 1, s.start)
		e = appendVarint(e, 2, (s.end-s.start)/pageSize)
		e = appendVarint(e, 4, uint64(pagePresent))
		add(appendVarint(e, 5, (s.end-s.start)/pageSize))
	}
	spans, err := pageSpans(data)
	if err != nil || !slices.Equal(joined(spans), []span{{0x1000, 0x4000}, {0x7000, 0x8000}}) {
		t.Errorf("%v, %v", spans, err)
	}
	for n := range len(data) {
		// Only between entries it may end.
		if spans, err := pageSpans(data[:n]); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes of %d: %v, %v", n, len(data), spans, err)
		}
	}
	data[len(data)-1] |= 0x80 // the last number goes on after the end
	if _, err := pageSpans(data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error is %v", err)
	}
}

func TestJoined(t *testing.T) {
	got := joined([]span{{5, 6}, {1, 3}, {2, 4}, {4, 5}, {8, 9}, {8, 9}})
	if want := []span{{1, 6}, {8, 9}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestAlwaysHuge(t *testing.T) {
	for name, test := range map[string]struct {
		all, small string
		want       []string
	}{
		"always":             {"[always] madvise never\n", "", []string{"enabled"}},
		"asked for":          {"always [madvise] never\n", "always inherit madvise [never]\n", nil},
		"never":              {"always madvise [never]\n", "always [inherit] madvise never\n", nil},
		"always of one size": {"always [madvise] never\n", "[always] inherit madvise never\n", []string{"hugepages-64kB/enabled"}},
		"no huge pages":      {"", "", nil},
	} {
		dir := t.TempDir()
		sized := filepath.Join(dir, "hugepages-64kB")
		if err := os.Mkdir(sized, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, content := range map[string]string{filepath.Join(dir, "enabled"): test.all, filepath.Join(sized, "enabled"): test.small} {
			if content == "" {
				continue
			}
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := alwaysHuge(dir)
		for i := range got {
			got[i] = strings.TrimPrefix(got[i], dir+"/")
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
