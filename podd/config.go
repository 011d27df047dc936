package podd

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"podd/pod"
)

// EmbeddedDirectory as the directory's address makes the daemon run the
// directory in its own process.
const EmbeddedDirectory = "embedded"

// Config is everything podd can be told. The TOML keys are the names of the
// command-line flags; a flag wins over the file.
type Config struct {
	// Name is the host's name in the cluster; empty means the machine's.
	Name string `toml:"name"`
	// Address is the host's address on its own subnet, as the proxy reaches it.
	Address string `toml:"address"`
	// Listen is the address and port of the API for other daemons and remote
	// podctls; empty means port 7443 on Address.
	Listen string `toml:"listen"`
	// StateDir keeps pods, images and, if embedded, the directory. RunDir
	// holds the socket and what need not survive a reboot.
	StateDir string `toml:"state-dir"`
	RunDir   string `toml:"run-dir"`
	// CgroupParent is the cgroup all pods are under.
	CgroupParent string `toml:"cgroup-parent"`
	// Directory is "embedded", or the URLs of an etcd cluster, with commas between.
	Directory string `toml:"directory"`
	// InitPath is the pods' init program; empty means podinit beside podd.
	InitPath string `toml:"init-path"`
	// CRIUPath is the criu program; empty means the one on PATH.
	CRIUPath string `toml:"criu-path"`
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `toml:"log-level"`
	LogFormat string `toml:"log-format"`
}

// DefaultConfig is the configuration where nothing is said.
func DefaultConfig() Config {
	return Config{
		StateDir:     "/var/lib/podd",
		RunDir:       "/run/podd",
		CgroupParent: "podd",
		Directory:    EmbeddedDirectory,
		LogLevel:     "info",
		LogFormat:    "text",
	}
}

// LoadConfig reads a TOML file over the defaults. A key it does not know is an
// error that names the line.
func LoadConfig(path string) (Config, error) {
	config := DefaultConfig()
	data, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("reading the configuration: %w", err)
	}
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		var strict *toml.StrictMissingError
		var syntax *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			return config, fmt.Errorf("%w: configuration %s: unknown key:\n%s", pod.ErrInvalid, path, strict.String())
		case errors.As(err, &syntax):
			return config, fmt.Errorf("%w: configuration %s:\n%s", pod.ErrInvalid, path, syntax.String())
		}
		return config, fmt.Errorf("%w: configuration %s: %w", pod.ErrInvalid, path, err)
	}
	return config, nil
}

// settings is a Config that was checked and parsed.
type settings struct {
	Config
	physical  netip.Addr
	listen    netip.AddrPort
	endpoints []string // empty when the directory is embedded
}

// DefaultPort is the port of podd's API.
const DefaultPort = 7443

func (c Config) settings() (settings, error) {
	s := settings{Config: c}
	if s.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return s, fmt.Errorf("finding the machine's name: %w", err)
		}
		s.Name, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	if err := pod.ValidateName(s.Name); err != nil {
		return s, fmt.Errorf("host name: %w", err)
	}
	var err error
	if s.Address == "" {
		return s, fmt.Errorf("%w: no address: set --address to this host's address on its own subnet", pod.ErrInvalid)
	}
	if s.physical, err = netip.ParseAddr(s.Address); err != nil || !s.physical.Is4() {
		return s, fmt.Errorf("%w: address %q: want an IPv4 address of this host", pod.ErrInvalid, s.Address)
	}
	s.listen = netip.AddrPortFrom(s.physical, DefaultPort)
	if s.Listen != "" {
		if s.listen, err = netip.ParseAddrPort(s.Listen); err != nil {
			return s, fmt.Errorf("%w: listen address %q: want ADDRESS:PORT", pod.ErrInvalid, s.Listen)
		}
	}
	for _, dir := range []struct{ name, path string }{{"state-dir", s.StateDir}, {"run-dir", s.RunDir}} {
		if !filepath.IsAbs(dir.path) {
			return s, fmt.Errorf("%w: %s %q: want an absolute path", pod.ErrInvalid, dir.name, dir.path)
		}
	}
	if s.CgroupParent == "" || strings.Contains(s.CgroupParent, "..") {
		return s, fmt.Errorf("%w: cgroup-parent %q: want a relative path such as podd", pod.ErrInvalid, s.CgroupParent)
	}
	if s.Directory != EmbeddedDirectory {
		for _, url := range strings.Split(s.Directory, ",") {
			if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
				return s, fmt.Errorf("%w: directory %q: want %q or URLs such as https://10.0.0.5:2379", pod.ErrInvalid, url, EmbeddedDirectory)
			}
			s.endpoints = append(s.endpoints, url)
		}
	}
	if s.InitPath == "" {
		self, err := os.Executable()
		if err != nil {
			return s, fmt.Errorf("finding podinit: %w", err)
		}
		s.InitPath = filepath.Join(filepath.Dir(self), "podinit")
	}
	if _, err := os.Stat(s.InitPath); err != nil {
		return s, fmt.Errorf("%w: the pods' init program: %w: set --init-path", pod.ErrInvalid, err)
	}
	return s, nil
}
