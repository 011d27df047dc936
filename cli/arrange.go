package cli

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arranged is a command line taken apart.
type arranged struct {
	command *command
	path    []string // names of the subcommands
	global  []string // the connection's flags
	flags   []string // the command's own flags
	args    []string
	help    bool // help was asked for
	// awaits is the flag that the last word was, if it takes a value and none
	// came; completion needs it.
	awaits cli.Flag
	// ended is true when options have ended: after "--" or inside the inner command.
	ended bool
}

// words puts the command line into the order that urfave needs: flags before
// arguments.
func (a arranged) words() []string {
	out := slices.Concat(a.global, a.path, a.flags)
	if len(a.args) > 0 {
		out = append(append(out, "--"), a.args...)
	}
	return out
}

// takeApart sorts the words of a command line. Flags may stand anywhere, so that
// "podctl inspect alice -o json" works as people type it; the words of an inner
// command stay as they are.
func takeApart(root *command, words []string) arranged {
	a := arranged{command: root}
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case a.ended:
			a.args = append(a.args, word)
		case word == "--":
			a.ended = true
		case len(word) > 1 && word[0] == '-':
			if word == "-h" || word == "--help" {
				a.help = true
				continue
			}
			flag, hasValue := findFlag(a.command, word)
			list := &a.flags
			if flag == nil && a.command != root {
				if flag, hasValue = findFlag(root, word); flag != nil {
					list = &a.global
				}
			} else if a.command == root {
				list = &a.global
			}
			*list = append(*list, word)
			if takesValue(flag) && !hasValue {
				if i+1 < len(words) {
					i++
					*list = append(*list, words[i])
				} else {
					a.awaits = flag
				}
			}
		case len(a.args) == 0 && a.command.child(word) != nil:
			a.command = a.command.child(word)
			a.path = append(a.path, word)
		default:
			a.args = append(a.args, word)
		}
		if inner := a.command.inner; inner > 0 && len(a.args) >= max(inner-1, 1) {
			a.ended = true
		}
	}
	return a
}

// findFlag finds the flag a word sets; of combined short ones ("-it") the last.
// hasValue is true when the value is in the word ("--name=alice").
func findFlag(c *command, word string) (flag cli.Flag, hasValue bool) {
	name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if flag := lookupFlag(c, name); flag != nil {
		return flag, hasValue
	}
	if strings.HasPrefix(word, "--") || hasValue {
		return nil, hasValue
	}
	for _, letter := range name {
		if flag = lookupFlag(c, string(letter)); flag == nil {
			return nil, false
		}
	}
	return flag, false
}

func lookupFlag(c *command, name string) cli.Flag {
	for _, flag := range c.flags {
		for _, n := range flag.Names() {
			if n == name {
				return flag
			}
		}
	}
	return nil
}

func takesValue(flag cli.Flag) bool {
	documented, ok := flag.(cli.DocGenerationFlag)
	return ok && documented.TakesValue()
}
