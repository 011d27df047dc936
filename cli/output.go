package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"
)

// format is how something is printed.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
	formatName  format = "name"
)

var formats = []format{formatTable, formatWide, formatJSON, formatYAML, formatName}

func outputFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "output", Aliases: []string{"o"}, Value: string(formatTable),
		Usage: "print as `FORMAT`: table, wide, json, yaml or name",
	}
}

// outputFormat reads the flag that outputFlag made.
func (p *podctl) outputFormat(c *cli.Context) (format, error) {
	wanted := format(c.String("output"))
	for _, f := range formats {
		if f == wanted {
			return f, nil
		}
	}
	return "", &usageError{p.current, fmt.Sprintf("unknown output format %q: want table, wide, json, yaml or name", wanted)}
}

// column is one column of a table; a wide one is shown by -o wide only.
type column[T any] struct {
	title string
	text  func(T) string
	wide  bool
}

// listing is how a kind of object is printed.
type listing[T any] struct {
	columns []column[T]
	name    func(T) string
}

// print writes a list in the format asked for. JSON and YAML are always arrays.
func (l listing[T]) print(w io.Writer, f format, items []T) error {
	switch f {
	case formatName:
		for _, item := range items {
			fmt.Fprintln(w, l.name(item))
		}
		return nil
	case formatJSON, formatYAML:
		if items == nil {
			items = []T{}
		}
		return printDocument(w, f, items)
	}
	table := newTable(w)
	var titles []string
	for _, column := range l.columns {
		if !column.wide || f == formatWide {
			titles = append(titles, column.title)
		}
	}
	table.row(titles...)
	for _, item := range items {
		var cells []string
		for _, column := range l.columns {
			if !column.wide || f == formatWide {
				cells = append(cells, column.text(item))
			}
		}
		table.row(cells...)
	}
	return table.flush()
}

// printDocument writes value as JSON or YAML.
func printDocument(w io.Writer, f format, value any) error {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	content := buffer.Bytes()
	if f == formatYAML {
		var err error
		if content, err = yaml.JSONToYAML(content); err != nil {
			return fmt.Errorf("encoding the output: %w", err)
		}
	}
	_, err := w.Write(content)
	return err
}

// table aligns rows of cells with two spaces between columns.
type table struct {
	buffer bytes.Buffer
	tab    *tabwriter.Writer
	to     io.Writer
}

func newTable(w io.Writer) *table {
	t := &table{to: w}
	t.tab = tabwriter.NewWriter(&t.buffer, 0, 8, 2, ' ', 0)
	return t
}

// row adds a row; an empty cell shows as a dash.
func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.tab, strings.Join(cells, "\t"))
}

// flush writes the table, without blanks at the ends of lines.
func (t *table) flush() error {
	if err := t.tab.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.buffer.String()) {
		if _, err := fmt.Fprintln(t.to, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}
