package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podd/bench/measure"
)

// sample is a report of two contenders, of which the second is twice as slow.
func sample(t *testing.T, bars ...Bar) *Report {
	t.Helper()
	var record measure.Record
	for i := range 15 {
		for _, work := range []string{"small", "large"} {
			record.Add(measure.Key{Work: work, Contender: "podd", Figure: "silence"}, float64(10+i))
			record.Add(measure.Key{Work: work, Contender: "other", Figure: "silence"}, float64(20+2*i))
		}
	}
	record.Fail(measure.Failure{Work: "small", Contender: "absent", Reason: "no such program", Final: true})
	r := &Report{Part: "sample", About: "A sample", Figures: []Figure{{Name: "silence", Unit: "ms"}}}
	r.Fill(&record, bars)
	return r
}

func key(contender string) measure.Key {
	return measure.Key{Work: "small", Contender: contender, Figure: "silence"}
}

func TestBars(t *testing.T) {
	for _, test := range []struct {
		bar     Bar
		value   float64
		pass    bool
		missing bool
	}{
		{Bar{Name: "ratio", Of: key("podd"), Against: key("other"), Limit: 0.5}, 0.5, true, false},
		{Bar{Name: "ratio", Of: key("podd"), Against: key("other"), Limit: 0.4}, 0.5, false, false},
		{Bar{Name: "at least", Of: key("podd"), Against: key("other"), Limit: 0.5, AtLeast: true}, 0.5, true, false},
		{Bar{Name: "absolute", Of: key("podd"), Limit: 20, Unit: "ms"}, 17, true, false},
		{Bar{Name: "difference", Of: key("other"), Against: key("podd"), Minus: true, Limit: 16, Unit: "ms"}, 17, false, false},
		{Bar{Name: "missing", Of: key("podd"), Against: key("absent"), Limit: 1}, 0, false, true},
	} {
		v := sample(t, test.bar).Verdicts[0]
		if v.Value != test.value || v.Pass != test.pass || v.Missing != test.missing {
			t.Errorf("%+v: %+v", test.bar, v)
		}
	}
}

func TestTables(t *testing.T) {
	r := sample(t, Bar{Name: "half of other", Of: key("podd"), Against: key("other"), Limit: 0.5})
	for name, write := range map[string]func(io.Writer) error{"text": r.WriteTable, "markdown": r.WriteMarkdown} {
		var b strings.Builder
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"17 ms (10-24)", "34 ms (20-48)", "half of other", "met", "no such program"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s has no %q:\n%s", name, want, &b)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	dir := t.TempDir()
	r := sample(t)
	if err := r.WriteJSON(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Read(filepath.Join(dir, "sample.json"))
	if err != nil {
		t.Fatal(err)
	}
	if s := again.series(key("podd")); s == nil || s.Summary != r.series(key("podd")).Summary || len(s.Samples) != 15 {
		t.Errorf("read back: %+v", s)
	}
}

func TestCharts(t *testing.T) {
	dir := t.TempDir()
	r := sample(t)
	for _, c := range []Chart{
		{File: "boxes", Title: "Boxes", Figure: "silence", Works: []string{"small", "large", "none"}, Contenders: []string{"podd", "other", "absent"}, LogY: true},
		{File: "lines", Title: "Lines", Figure: "silence", Works: []string{"small", "large"}, Contenders: []string{"podd", "other"}, X: []float64{1, 1000}, XLabel: "size [MiB]", LogX: true},
		{File: "point", Title: "One point", Figure: "silence", Works: []string{"small"}, Contenders: []string{"podd"}, X: []float64{1}, LogX: true, LogY: true},
	} {
		if err := r.Draw(dir, c); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(dir, c.File+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		decoder := xml.NewDecoder(f)
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", c.File, err)
			}
		}
		f.Close()
	}
	if err := r.Draw(dir, Chart{File: "nothing", Figure: "absent"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nothing.svg")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a chart of nothing: %v", err)
	}
}

func TestBehind(t *testing.T) {
	r := sample(t)
	for better, want := range map[string]int{"": 0, "less": 0, "more": 2} {
		r.Figures[0].Better = better
		if got := r.Behind(); len(got) != want {
			t.Errorf("if %q is better: %q", better, got)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		value float64
		unit  string
		want  string
	}{
		{0.1234, "", "0.123"}, {1.234, "ms", "1.23 ms"}, {12.34, "ms", "12.3 ms"}, {1234.5, "ms", "1234 ms"}, {5, "ms", "5 ms"},
		{1536, "B", "1.50 KiB"}, {2 << 30, "B", "2 GiB"}, {-3.25, "us", "-3.25 us"},
	} {
		if got := format(test.value, test.unit); got != test.want {
			t.Errorf("format(%v, %q) = %q, want %q", test.value, test.unit, got, test.want)
		}
	}
}

func TestEmbed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	const text = "# Title\n<!-- figures of sample -->\nold\n<!-- end of sample -->\nrest\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it finds what it wrote
		if err := sample(t).Embed(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(got); strings.Contains(s, "old") || strings.Count(s, "| work |") != 1 || !strings.HasPrefix(s, "# Title\n") || !strings.HasSuffix(s, "-->\nrest\n") {
		t.Errorf("the file is now\n%s", s)
	}
	if err := (&Report{Part: "other"}).Embed(path); err == nil {
		t.Error("no error for a part that the file doesn't have")
	}
}
