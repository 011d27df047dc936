package datapath

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"podd/pod"
	"podd/vnet/vxlan"
)

func TestParseDeviceName(t *testing.T) {
	for name, want := range map[string]pod.Label{
		"label1": 1, "label16777214": pod.MaxLabel,
		"label0": 0, "label16777215": 0, "label16777216": 0, "label01": 0, "label": 0, "label-1": 0, "labelled": 0, "vlabel1": 0, "eth0": 0,
	} {
		label, ok := parseDeviceName(name)
		if ok != (want != 0) || ok && label != want {
			t.Errorf("%s: got label %d, %t", name, label, ok)
		}
		if ok && deviceName(label) != name {
			t.Errorf("%s becomes %s", name, deviceName(label))
		}
	}
}

func validConfig() Config {
	return Config{
		Physical:     netip.MustParseAddr("10.10.0.2"),
		PublicPrefix: netip.MustParsePrefix("198.18.0.0/16"), VirtualPrefix: netip.MustParsePrefix("100.64.0.0/16"),
	}
}

func TestConfigDefaults(t *testing.T) {
	c := validConfig()
	c.Physical = netip.MustParseAddr("::ffff:10.10.0.2")
	c.PublicPrefix = netip.MustParsePrefix("198.18.3.4/16")
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	want := validConfig()
	want.Port, want.HoldBytes, want.Linger = vxlan.DefaultPort, vxlan.HoldQueueBytes, time.Second
	if c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
}

func TestConfigIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no physical address":   func(c *Config) { c.Physical = netip.Addr{} },
		"IPv6 physical address": func(c *Config) { c.Physical = netip.MustParseAddr("2001:db8::1") },
		"IPv6 prefix":           func(c *Config) { c.PublicPrefix = netip.MustParsePrefix("2001:db8::/112") },
		"no prefix":             func(c *Config) { c.VirtualPrefix = netip.Prefix{} },
		"different lengths":     func(c *Config) { c.VirtualPrefix = netip.MustParsePrefix("100.64.0.0/17") },
		"overlap":               func(c *Config) { c.VirtualPrefix = c.PublicPrefix },
	} {
		c := validConfig()
		change(&c)
		if err := c.complete(); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: got %v, want %v", name, err, pod.ErrInvalid)
		}
	}
}

// TestRulesHaveNoPods makes sure that no rule depends on anything but the
// configuration, and that there are nine.
func TestRulesHaveNoPods(t *testing.T) {
	c := validConfig()
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	count := func(c Config) (n int) {
		for _, chain := range rules(c) {
			n += len(chain.Rules)
		}
		return n
	}
	if n := count(c); n != 9 {
		t.Errorf("%d rules, want 9", n)
	}
	c.AllowUnderlay = true
	if n := count(c); n != 7 {
		t.Errorf("%d rules with AllowUnderlay, want 7", n)
	}
	c.Port = 8472
	for _, chain := range rules(c) {
		for _, rule := range chain.Rules {
			if strings.Contains(rule, "4789") {
				t.Errorf("rule with another port: %s", rule)
			}
		}
	}
}

func TestParseDiscards(t *testing.T) {
	const text = "entries  allocs unresolved_discards table_fulls\n00000003 00006f4d 00000011 00000000\n00000003 00006e38 0000000c 00000000\n"
	if n, err := parseDiscards(text); err != nil || n != 0x11+0xc {
		t.Errorf("got %d, %v", n, err)
	}
	for _, bad := range []string{"", "entries\n1\n", "entries unresolved_discards\n1\n", "unresolved_discards\nzz\n"} {
		if _, err := parseDiscards(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
