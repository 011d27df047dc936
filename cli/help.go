package cli

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// printHelp writes a command's help: how it is used, what it does, examples,
// subcommands and options.
func (p *podctl) printHelp(w io.Writer, c *command) error {
	var out strings.Builder
	usage := strings.TrimSpace("podctl " + c.path())
	if c.path() == "" || c.action == nil {
		usage += " COMMAND"
	}
	fmt.Fprintf(&out, "Usage: %s\n\n", strings.TrimSpace(usage+" [OPTION...] "+c.args))
	fmt.Fprintf(&out, "%s.\n", strings.ToUpper(c.usage[:1])+c.usage[1:])
	if len(c.aliases) > 0 {
		fmt.Fprintf(&out, "Also: %s.\n", strings.Join(c.aliases, ", "))
	}
	fmt.Fprintf(&out, "\n%s\n", c.description)
	if len(c.examples) > 0 {
		fmt.Fprintf(&out, "\nExamples:\n  %s\n", strings.Join(c.examples, "\n  "))
	}
	writeCommands(&out, c)
	own, global := "Options", p.root.flags
	if c == p.root {
		own, global = "Global options, before or after the command", nil
	}
	writeFlags(&out, own, slices.Concat(c.flags, []cli.Flag{cli.HelpFlag}))
	if len(global) > 0 {
		out.WriteString("\nGlobal options: podctl help\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// writeCommands lists subcommands by category, in their order.
func writeCommands(out *strings.Builder, c *command) {
	t := newTable(out)
	category := "\x00"
	for _, sub := range c.subcommands {
		if sub.category != category {
			_ = t.flush() // a strings.Builder takes everything
			t = newTable(out)
			category = sub.category
			title := "Commands"
			if c.parent == nil {
				title = category
			}
			fmt.Fprintf(out, "\n%s:\n", title)
		}
		t.row("  "+strings.Join(append([]string{sub.name}, sub.aliases...), ", "), sub.usage)
	}
	_ = t.flush()
}

// placeholder is the part of a flag's usage that names its value.
var placeholder = regexp.MustCompile("`([^`]*)`")

func writeFlags(out *strings.Builder, title string, flags []cli.Flag) {
	fmt.Fprintf(out, "\n%s:\n", title)
	t := newTable(out)
	for _, flag := range flags {
		documented, ok := flag.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		var long, short string
		for _, name := range flag.Names() {
			if len(name) == 1 {
				short = dashed(name) + ", "
			} else if long == "" {
				long = dashed(name)
			}
		}
		usage := documented.GetUsage()
		if m := placeholder.FindStringSubmatch(usage); m != nil && documented.TakesValue() {
			long += " " + m[1]
		}
		usage = strings.ReplaceAll(usage, "`", "")
		if text := documented.GetDefaultText(); text != "" && text != "false" && !strings.Contains(usage, "(default") {
			usage += " (default: " + strings.Trim(text, `"`) + ")"
		}
		t.row(fmt.Sprintf("  %4s%s", short, long), usage)
	}
	_ = t.flush()
}
