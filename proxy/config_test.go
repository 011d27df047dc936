package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podd/pod"
)

// reference is the configuration file that is shipped.
const reference = "../packaging/podproxy.toml"

func TestReferenceConfig(t *testing.T) {
	config, err := LoadConfig(reference)
	if err != nil {
		t.Fatal(err)
	}
	config.Name = "proxy"
	s, err := config.settings()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.listen, s.dnsListen, s.upstreams, s.lifetime); got != "10.10.0.2:7444 [10.10.0.2:53 169.254.1.1:53] [] 168h0m0s" {
		t.Errorf("settings are %s", got)
	}
}

// TestReferenceDefaults: what the reference file shows commented out is valid
// too, and what it calls a default is one.
func TestReferenceDefaults(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if key := strings.TrimPrefix(line, "#"); len(key) > 0 && key[0] != ' ' {
			line = key
		}
		lines = append(lines, line)
	}
	path := filepath.Join(t.TempDir(), "all.toml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := all.settings()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.upstreams) != 2 || s.upstreams[0] != netip.MustParseAddrPort("9.9.9.9:53") {
		t.Errorf("upstreams are %v", s.upstreams)
	}
	want := DefaultConfig()
	want.Address, want.Name = all.Address, all.Name // those have none
	want.Listen, want.DNSListen = all.Address+":7444", all.Address+":53"
	want.DNSUpstream, want.Directory = all.DNSUpstream, all.Directory
	want.DirectoryCA, want.DirectoryCert, want.DirectoryKey = all.DirectoryCA, all.DirectoryCert, all.DirectoryKey
	if fmt.Sprint(all) != fmt.Sprint(want) {
		t.Errorf("the file shows %+v, the defaults are %+v", all, want)
	}
}

func TestBadConfig(t *testing.T) {
	for text, says := range map[string]string{
		"adress = \"10.10.0.2\"":            "adress",
		"address = 10":                      "address",
		"address = \"10.10.0.2":             "1|",
		"zone = \"a\"\n\n[dns]\nlisten = 1": "dns",
	} {
		path := filepath.Join(t.TempDir(), "podproxy.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error is %v", text, err)
		}
	}
	if _, err := LoadConfig("/nonexistent/podproxy.toml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestBadSettings(t *testing.T) {
	good := DefaultConfig()
	good.Name, good.Address = "proxy", "10.10.0.2"
	if _, err := good.settings(); err != nil {
		t.Fatal(err)
	}
	for says, change := range map[string]func(*Config){
		"--address":       func(c *Config) { c.Address = "" },
		"IPv4 address":    func(c *Config) { c.Address = "fd00::1" },
		"belongs to pods": func(c *Config) { c.Address = "100.64.0.1" },
		"proxy name":      func(c *Config) { c.Name = "Proxy_1" },
		"listen address":  func(c *Config) { c.Listen = "7444" },
		"DNS listen":      func(c *Config) { c.DNSListen = "localhost:53" },
		"DNS upstream":    func(c *Config) { c.DNSUpstream = []string{"resolver"} },
		"state-dir":       func(c *Config) { c.StateDir = "state" },
		"directory":       func(c *Config) { c.Directory = "10.0.0.5:2379" },
		"https://":        func(c *Config) { c.Directory = "http://10.0.0.5:2379" },
		"168h":            func(c *Config) { c.CertificateLifetime = "a week" },
		"public-prefix":   func(c *Config) { c.PublicPrefix = "198.18.0.0" },
		"differ":          func(c *Config) { c.VirtualPrefix = "100.64.0.0/15" },
		"zone":            func(c *Config) { c.Zone = "" },
	} {
		config := good
		change(&config)
		if _, err := config.settings(); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v", says, err)
		}
	}
}

func TestDNSListen(t *testing.T) {
	for listen, want := range map[string]string{
		"":                "[10.10.0.2:53 169.254.1.1:53]",
		"0.0.0.0:53":      "[0.0.0.0:53]",
		"0.0.0.0:5353":    "[0.0.0.0:5353 169.254.1.1:53]",
		"169.254.1.1:53":  "[169.254.1.1:53]",
		"192.0.2.53:5353": "[192.0.2.53:5353 169.254.1.1:53]",
	} {
		config := DefaultConfig()
		config.Name, config.Address, config.DNSListen = "proxy", "10.10.0.2", listen
		s, err := config.settings()
		if err != nil || fmt.Sprint(s.dnsListen) != want {
			t.Errorf("--dns-listen %q listens at %v (%v), want %s", listen, s.dnsListen, err, want)
		}
	}
}
