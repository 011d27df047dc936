package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"podd/proxy"
)

// parse gives the configuration that a command line means.
func parse(t *testing.T, args ...string) (proxy.Config, error) {
	t.Helper()
	var got proxy.Config
	a := app()
	note := action(func(_ *cli.Context, config proxy.Config) error {
		got = config
		return nil
	})
	a.Action, a.Commands[0].Action = note, note
	a.Writer, a.ErrWriter = t.Output(), t.Output()
	return got, a.Run(append([]string{"podproxy"}, args...))
}

func TestFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "podproxy.toml")
	if err := os.WriteFile(file, []byte("address = \"10.10.0.2\"\nzone = \"from.file\"\ndns-upstream = [\"9.9.9.9\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*proxy.Config)) proxy.Config {
		c := proxy.DefaultConfig()
		change(&c)
		return c
	}
	fromFile := func(c *proxy.Config) {
		c.Address, c.Zone, c.DNSUpstream = "10.10.0.2", "from.file", []string{"9.9.9.9"}
	}
	for _, c := range []struct {
		args string
		want proxy.Config
	}{
		{"", with(func(*proxy.Config) {})},
		{"--address 10.0.0.1 --name p", with(func(c *proxy.Config) { c.Address, c.Name = "10.0.0.1", "p" })},
		{"--config " + file, with(fromFile)},
		{"--zone from.flag --config " + file + " --dns-upstream 10.0.0.1 --dns-upstream 10.0.0.2", with(func(c *proxy.Config) {
			fromFile(c)
			c.Zone, c.DNSUpstream = "from.flag", []string{"10.0.0.1", "10.0.0.2"}
		})},
		{"cleanup --config " + file + " --zone from.flag", with(func(c *proxy.Config) {
			fromFile(c)
			c.Zone = "from.flag"
		})},
		{"--config " + file + " --name before cleanup --name after", with(func(c *proxy.Config) {
			fromFile(c)
			c.Name = "after"
		})},
	} {
		got, err := parse(t, strings.Fields(c.args)...)
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%q means %+v (%v), want %+v", c.args, got, err, c.want)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	for args, says := range map[string]string{
		"start":                          "unexpected argument",
		"--colour red":                   "colour",
		"--config /nonexistent/podproxy": "no such file",
	} {
		if _, err := parse(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error is %v", args, err)
		}
	}
}

// TestEveryKeyHasAFlag: the file and the command line can say the same.
func TestEveryKeyHasAFlag(t *testing.T) {
	reference, err := os.ReadFile("../../packaging/podproxy.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flags() {
		name := f.Names()[0]
		if name != "config" && name != "join" && !strings.Contains(string(reference), name+" = ") {
			t.Errorf("the reference file has no %s", name)
		}
	}
}
