package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"podd/podd"
)

// TestFlags: the configuration that a command line means. A flag wins over the
// file, and may stand before a subcommand or after it.
func TestFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "podd.toml")
	if err := os.WriteFile(file, []byte("address = \"10.10.1.2\"\nmax-moves = 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*podd.Config)) podd.Config {
		c := podd.DefaultConfig()
		change(&c)
		return c
	}
	for _, c := range []struct {
		args string
		want podd.Config
	}{
		{"", with(func(*podd.Config) {})},
		{"--address 10.0.0.1 --criu-path /x", with(func(c *podd.Config) { c.Address, c.CRIUPath = "10.0.0.1", "/x" })},
		{"--config " + file, with(func(c *podd.Config) { c.Address, c.MaxMoves = "10.10.1.2", 7 })},
		{"--max-moves 2 --config " + file + " --name a", with(func(c *podd.Config) { c.Address, c.MaxMoves, c.Name = "10.10.1.2", 2, "a" })},
		{"cleanup --config " + file, with(func(c *podd.Config) { c.Address, c.MaxMoves = "10.10.1.2", 7 })},
		{"--config " + file + " --name before cleanup --name after", with(func(c *podd.Config) { c.Address, c.MaxMoves, c.Name = "10.10.1.2", 7, "after" })},
	} {
		var got podd.Config
		a := app()
		note := action(func(_ *cli.Context, config podd.Config) error {
			got = config
			return nil
		})
		a.Action, a.Commands[0].Action = note, note
		a.Writer, a.ErrWriter = t.Output(), t.Output()
		err := a.Run(append([]string{"podd"}, strings.Fields(c.args)...))
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%q means %+v (%v), want %+v", c.args, got, err, c.want)
		}
	}
}
