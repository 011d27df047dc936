package lab

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"podd/pod"
)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]uint64{
		"": 0, "1gbit": 125_000_000, "100mbit": 12_500_000, "2.5Gbit": 312_500_000, "800kbit": 100_000, "8000000bit": 1_000_000,
	} {
		if got, err := parseRate(s); err != nil || got != want {
			t.Errorf("%q: %d bytes a second, error %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"fast", "1", "gbit", "-1mbit", "0mbit", "1tbit", "1bit", "100gbit", "nanbit", "1 mbit x"} {
		if got, err := parseRate(s); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: %d bytes a second, error %v; want one that wraps ErrInvalid", s, got, err)
		}
	}
}

func TestOptions(t *testing.T) {
	l, err := newLab(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if l.Hosts != DefaultHosts || l.Dir != place.dir {
		t.Errorf("defaults: %+v", l.config)
	}
	for _, o := range []Options{{Hosts: 1}, {Hosts: 9}, {Hosts: -1}, {LinkRate: "fast"}, {Dir: "relative"}} {
		if _, err := newLab(o); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%+v: error %v; want one that wraps ErrInvalid", o, err)
		}
	}
}

func TestNodes(t *testing.T) {
	l, err := newLab(Options{Hosts: 3})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.Nodes(), " "); got != "router proxy client a b c" {
		t.Errorf("nodes %s", got)
	}
	for node, want := range map[string]string{"a": "10.10.1.2", "c": "10.10.3.2", Proxy: "10.10.0.2", Client: "192.0.2.10"} {
		if got := l.Address(node); got.String() != want {
			t.Errorf("%s has address %s; want %s", node, got, want)
		}
	}
	if got := gateway(netip.MustParseAddr("10.10.3.2")); got.String() != "10.10.3.1" {
		t.Errorf("gateway %s", got)
	}
	for _, node := range []string{"d", "", "A", "ab", "../a"} {
		if err := l.checkNode(node); !errors.Is(err, pod.ErrNotFound) {
			t.Errorf("node %q: error %v; want one that wraps ErrNotFound", node, err)
		}
	}
	for _, node := range []string{Router, Client} {
		if err := l.checkDaemon(node); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("daemon of node %q: error %v; want one that wraps ErrInvalid", node, err)
		}
	}
	// sun_path has room for 107 bytes.
	if path := l.Socket("a"); len(path) > 60 {
		t.Errorf("socket %s leaves no room", path)
	}
}

func TestProcess(t *testing.T) {
	started, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p := (process{os.Getpid(), started}); !p.alive() {
		t.Error("this process is not alive")
	}
	for _, p := range []process{{}, {os.Getpid(), started + 1}, {1 << 22, started}} {
		if p.alive() {
			t.Errorf("%+v is alive", p)
		}
		if err := p.signal(0); err != nil {
			t.Errorf("signal to a process that has ended: %v", err)
		}
		if err := p.wait(t.Context()); err != nil {
			t.Errorf("waiting for a process that has ended: %v", err)
		}
	}
}
