package podd

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podd/daemon"
	"podd/pod"
)

// Config is everything podd can be told. The TOML keys are the names of the
// command-line flags; a flag wins over the file.
type Config struct {
	// Name is the host's name in the cluster; empty means the one it joined
	// under, which is then the machine's.
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
	// Directory is "embedded", or the URLs of an etcd cluster, with commas
	// between; empty means what the cluster said when the host joined.
	Directory string `toml:"directory"`
	// DirectoryCA, DirectoryCert and DirectoryKey are PEM files for an etcd
	// cluster that has an authority of its own.
	DirectoryCA   string `toml:"directory-ca"`
	DirectoryCert string `toml:"directory-cert"`
	DirectoryKey  string `toml:"directory-key"`
	// Join is a token, or @ and the file it is in, or - for standard input; it
	// is of use once, so the file can't have it.
	Join string `toml:"-"`
	// CertificateLifetime is for how long the daemons' certificates are good
	// that this host issues, if it has the cluster's authority.
	CertificateLifetime string `toml:"certificate-lifetime"`
	// InitPath is the pods' init program; empty means podinit beside podd.
	InitPath string `toml:"init-path"`
	// PageFilter is the library that leaves memory out of CRIU's dumps; empty means
	// podd-pagefilter.so beside podd. Without it moves are possible, but slower.
	PageFilter string `toml:"page-filter"`
	// CRIUPath is the criu program; empty means the one on PATH.
	CRIUPath string `toml:"criu-path"`
	// MaxMoves bounds the moves out of and into this host at a time; further
	// ones wait.
	MaxMoves int `toml:"max-moves"`
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `toml:"log-level"`
	LogFormat string `toml:"log-format"`
}

// DefaultConfig is the configuration where nothing is said.
func DefaultConfig() Config {
	return Config{
		StateDir:            "/var/lib/podd",
		RunDir:              "/run/podd",
		CgroupParent:        "podd",
		CertificateLifetime: "168h",
		MaxMoves:            pod.DefaultMaxMoves,
		LogLevel:            "info",
		LogFormat:           "text",
	}
}

// LoadConfig reads a TOML file over the defaults. A key it does not know is an
// error that names the line.
func LoadConfig(path string) (Config, error) {
	return daemon.LoadConfig(path, DefaultConfig())
}

// settings is a Config that was checked and parsed.
type settings struct {
	Config
	physical netip.Addr
	listen   netip.AddrPort
	lifetime time.Duration // of certificates
}

// DefaultPort is the port of podd's API.
const DefaultPort = 7443

func (c Config) settings() (settings, error) {
	s := settings{Config: c}
	var err error
	if s.Name != "" {
		if err := pod.ValidateName(s.Name); err != nil {
			return s, fmt.Errorf("host name: %w", err)
		}
	}
	if s.physical, err = daemon.Address(s.Address); err != nil {
		return s, err
	}
	if s.listen, err = daemon.AddrPort(s.Listen, netip.AddrPortFrom(s.physical, DefaultPort)); err != nil {
		return s, fmt.Errorf("listen address: %w", err)
	}
	if err := daemon.CheckDirs(s.StateDir, s.RunDir); err != nil {
		return s, err
	}
	if s.Directory != "" {
		if _, err := daemon.Endpoints(s.Directory); err != nil {
			return s, err
		}
	}
	if s.lifetime, err = daemon.CertificateLifetime(s.CertificateLifetime); err != nil {
		return s, err
	}
	if s.CgroupParent == "" || strings.Contains(s.CgroupParent, "..") {
		return s, fmt.Errorf("%w: cgroup-parent %q: want a relative path such as podd", pod.ErrInvalid, s.CgroupParent)
	}
	if s.MaxMoves < 1 {
		return s, fmt.Errorf("%w: max-moves %d: want at least 1", pod.ErrInvalid, s.MaxMoves)
	}
	self, err := os.Executable()
	if err != nil {
		return s, fmt.Errorf("finding podinit: %w", err)
	}
	s.InitPath = cmp.Or(s.InitPath, filepath.Join(filepath.Dir(self), "podinit"))
	s.PageFilter = cmp.Or(s.PageFilter, filepath.Join(filepath.Dir(self), "podd-pagefilter.so"))
	if _, err := os.Stat(s.InitPath); err != nil {
		return s, fmt.Errorf("%w: the pods' init program: %w: set --init-path", pod.ErrInvalid, err)
	}
	return s, nil
}
