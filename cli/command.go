package cli

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// unlimited as a command's max allows any number of arguments.
const unlimited = -1

// command describes one command of podctl; urfave's Command is built from it.
// It also knows what urfave does not: how many arguments there may be, where
// the words of an inner command begin, what each argument names, and examples.
type command struct {
	name        string
	aliases     []string
	usage       string // one line
	args        string // the arguments as shown in the help
	description string
	examples    []string // command lines
	category    string
	flags       []cli.Flag
	subcommands []*command
	// min and max bound the number of arguments.
	min, max int
	// inner is the number of arguments before the first word of an inner
	// command, plus one: from there on nothing is a flag of podctl's. 0 when
	// there is no inner command.
	inner int
	// completes says what the arguments name; the last is good for all further ones.
	completes []completer
	// notFound is the hint when something named does not exist.
	notFound string
	action   cli.ActionFunc

	parent *command
}

// path is the command's full name, without the program's.
func (c *command) path() string {
	if c.parent == nil {
		return ""
	}
	return strings.TrimSpace(c.parent.path() + " " + c.name)
}

// adopt tells every command below c who its parent is.
func (c *command) adopt() {
	for _, sub := range c.subcommands {
		sub.parent = c
		sub.adopt()
	}
}

// child finds a subcommand by name or alias.
func (c *command) child(name string) *command {
	for _, sub := range c.subcommands {
		if sub.name == name {
			return sub
		}
		for _, alias := range sub.aliases {
			if alias == name {
				return sub
			}
		}
	}
	return nil
}

// build makes urfave's command of c and its subcommands.
func (c *command) build(p *podctl) *cli.Command {
	out := &cli.Command{
		Name: c.name, Aliases: c.aliases, Flags: c.flags,
		HideHelp: true, // podctl prints its own
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			p.current = c
			return &usageError{command: c, message: flagMessage(err)}
		},
		Action: func(ctx *cli.Context) error {
			p.current = c
			if err := c.checkArgs(ctx.Args().Slice()); err != nil {
				return err
			}
			if c.action == nil {
				return p.group(ctx)
			}
			return c.action(ctx)
		},
	}
	for _, sub := range c.subcommands {
		out.Subcommands = append(out.Subcommands, sub.build(p))
	}
	return out
}

func (c *command) checkArgs(args []string) error {
	if c.action == nil {
		return nil // a group: its argument is an unknown subcommand
	}
	switch {
	case len(args) < c.min:
		return &usageError{command: c, message: fmt.Sprintf("too few arguments: want %s", c.args)}
	case c.max != unlimited && len(args) > c.max:
		if c.max == 0 {
			return &usageError{command: c, message: fmt.Sprintf("takes no arguments, got %q", args[0])}
		}
		return &usageError{command: c, message: fmt.Sprintf("too many arguments: want %s, got %q", c.args, strings.Join(args, " "))}
	}
	return nil
}

// group is the action of a command that only has subcommands.
func (p *podctl) group(c *cli.Context) error {
	if !c.Args().Present() {
		return p.printHelp(p.stdout, p.current)
	}
	message := fmt.Sprintf("unknown command %q", c.Args().First())
	if near := p.current.nearest(c.Args().First()); near != "" {
		message += fmt.Sprintf(": did you mean %q?", near)
	}
	return &usageError{command: p.current, message: message}
}

// nearest is the subcommand that is most like a mistyped name: urfave's measure
// finds something for every word, so the first letter must be right.
func (c *command) nearest(name string) string {
	var known []*cli.Command
	for _, sub := range c.subcommands {
		if name != "" && sub.name[0] == name[0] {
			known = append(known, &cli.Command{Name: sub.name, HideHelp: true})
		}
	}
	for _, command := range known {
		if strings.Contains(cli.SuggestCommand(known, name), `"`+command.Name+`"`) {
			return command.Name
		}
	}
	return ""
}

// flagMessage turns the flag package's words into podctl's.
func flagMessage(err error) string {
	message := err.Error()
	if name, ok := strings.CutPrefix(message, "flag provided but not defined: -"); ok {
		return "unknown option " + dashed(name)
	}
	if name, ok := strings.CutPrefix(message, "flag needs an argument: -"); ok {
		return "option " + dashed(name) + " needs a value"
	}
	return message
}

// dashed writes an option as a user does: -x or --long.
func dashed(name string) string {
	name = strings.TrimLeft(name, "-")
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}
