package podd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podd/pod"
	"podd/trust"
)

func TestReferenceConfig(t *testing.T) {
	const reference = "../packaging/podd.toml"
	config, err := LoadConfig(reference)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Address = "10.10.1.2"
	if config != want {
		t.Errorf("the reference does not show the defaults:\ngot  %+v\nwant %+v", config, want)
	}
	// Every key is documented, those without a default as comments.
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		"name", "address", "listen", "state-dir", "run-dir", "cgroup-parent", "directory",
		"directory-ca", "directory-cert", "directory-key", "certificate-lifetime",
		"init-path", "criu-path", "max-moves", "log-level", "log-format",
	} {
		if !strings.Contains(string(text), "\n"+key+" = ") && !strings.Contains(string(text), "\n# "+key+" = ") {
			t.Errorf("key %s is not in the reference", key)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"unknown key": {"adress = \"10.0.0.1\"\n", "unknown key"},
		"syntax":      {"name = \n", "podd.toml"},
		"wrong type":  {"name = 7\n", "podd.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "podd.toml")
			if err := os.WriteFile(path, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadConfig(path)
			if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an invalid configuration with %q", err, test.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	init := filepath.Join(t.TempDir(), "podinit")
	if err := os.WriteFile(init, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	good := func() Config {
		c := DefaultConfig()
		c.Name, c.Address, c.InitPath = "a", "10.10.1.2", init
		return c
	}
	if s, err := good().settings(); err != nil || s.listen.String() != "10.10.1.2:7443" || s.lifetime != trust.DaemonLifetime {
		t.Fatalf("got %+v, %v", s, err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no address":     {func(c *Config) { c.Address = "" }, "--address"},
		"address":        {func(c *Config) { c.Address = "example" }, "IPv4"},
		"IPv6":           {func(c *Config) { c.Address = "::1" }, "IPv4"},
		"name":           {func(c *Config) { c.Name = "A_B" }, "lower-case"},
		"listen":         {func(c *Config) { c.Listen = "7443" }, "ADDRESS:PORT"},
		"relative dir":   {func(c *Config) { c.StateDir = "state" }, "absolute"},
		"directory":      {func(c *Config) { c.Directory = "10.0.0.1:2379" }, "https://"},
		"no TLS":         {func(c *Config) { c.Directory = "http://10.0.0.1:2379" }, "https://"},
		"lifetime":       {func(c *Config) { c.CertificateLifetime = "1s" }, "168h"},
		"no podinit":     {func(c *Config) { c.InitPath = "/nonexistent" }, "--init-path"},
		"no moves":       {func(c *Config) { c.MaxMoves = 0 }, "max-moves"},
		"cgroup escapes": {func(c *Config) { c.CgroupParent = "../podd" }, "relative"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			test.change(&c)
			if _, err := c.settings(); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an invalid configuration with %q", err, test.want)
			}
		})
	}
	c := good()
	c.Name, c.Directory = "", "https://10.0.0.1:2379,https://10.0.0.2:2379"
	if _, err := c.settings(); err != nil {
		t.Error(err)
	}
}
