package pod

import (
	"errors"
	"strings"
	"testing"
)

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "alice", "a-1", "0", strings.Repeat("x", MaxNameLength)} {
		if err := ValidateName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-a", "a-", "Alice", "a.b", "a_b", "a b", "ä", "../x", strings.Repeat("x", MaxNameLength+1)} {
		if err := ValidateName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestParseVolume(t *testing.T) {
	for text, want := range map[string]Volume{
		"/data:/srv":            {Source: "/data", Destination: "/srv", Policy: VolumeShare},
		"home:/home/alice":      {Source: "home", Destination: "/home/alice", Policy: VolumeMove},
		"/data/:/srv/:copy,ro":  {Source: "/data", Destination: "/srv", Policy: VolumeCopy, ReadOnly: true},
		"/etc/hosts:/h:rebind":  {Source: "/etc/hosts", Destination: "/h", Policy: VolumeRebind},
		"/data:/srv/../x:share": {Source: "/data", Destination: "/x", Policy: VolumeShare},
	} {
		if got, err := ParseVolume(text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/data", "/data:", ":/srv", "/data:srv", "/data:/", "/data:/srv:fast", "/a:/b:ro:rw", "Bad Name:/srv"} {
		if _, err := ParseVolume(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", text, err)
		}
	}
}

func TestSpecValidate(t *testing.T) {
	spec := Spec{Name: "alice", Command: []string{"sh"}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	if spec.Image != "host" || spec.PIDs != DefaultPIDs {
		t.Errorf("defaults are missing: %+v", spec)
	}
	for name, change := range map[string]func(*Spec){
		"name":         func(s *Spec) { s.Name = "" },
		"no command":   func(s *Spec) { s.Command = nil },
		"relative dir": func(s *Spec) { s.Image = "dir:image" },
		"environment":  func(s *Spec) { s.Env = []string{"A"} },
		"nameless":     func(s *Spec) { s.Env = []string{"=x"} },
		"work dir":     func(s *Spec) { s.WorkDir = "tmp" },
		"memory":       func(s *Spec) { s.MemoryBytes = -1 },
		"tiny memory":  func(s *Spec) { s.MemoryBytes = 4096 },
		"two volumes": func(s *Spec) {
			s.Volumes = []Volume{{Source: "/a", Destination: "/x"}, {Source: "/b", Destination: "/x/"}}
		},
	} {
		s := Spec{Name: "alice", Command: []string{"sh"}}
		change(&s)
		if err := s.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}

func TestParseStrategy(t *testing.T) {
	for _, s := range Strategies {
		if got, err := ParseStrategy(string(s)); err != nil || got != s {
			t.Errorf("%s: got %s, %v", s, got, err)
		}
	}
	if got, err := ParseStrategy(""); err != nil || got != StrategyAuto {
		t.Errorf("nothing: got %s, %v", got, err)
	}
	_, err := ParseStrategy("Post-Copy")
	if want := `invalid: unknown strategy "Post-Copy": want auto, stop-copy, pre-copy, post-copy or checkpoint-server`; !errors.Is(err, ErrInvalid) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
