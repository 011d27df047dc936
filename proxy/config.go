package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"podd/daemon"
	"podd/directory"
	"podd/pod"
	"podd/proxy/datapath"
)

const (
	// DefaultPort is the port of podproxy's API.
	DefaultPort = 7444
	dnsPort     = 53
)

// Config is everything podproxy can be told. The TOML keys are the names of the
// command-line flags; a flag wins over the file.
type Config struct {
	// Name is the proxy's name in the cluster; empty means the one it joined
	// under, which is then the machine's.
	Name string `toml:"name"`
	// Address is the proxy's address on its own subnet, as hosts reach it.
	Address string `toml:"address"`
	// Listen is the address and port of the API, /metrics and /healthz; empty
	// means port 7444 on Address.
	Listen string `toml:"listen"`
	// StateDir keeps the credentials, the audit and, if embedded, the
	// directory; RunDir what need not survive a reboot.
	StateDir string `toml:"state-dir"`
	RunDir   string `toml:"run-dir"`
	// Directory is "embedded", or the URLs of an etcd cluster, with commas
	// between; empty means what the cluster said when the proxy joined.
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
	// that this proxy issues, if it has the cluster's authority.
	CertificateLifetime string `toml:"certificate-lifetime"`
	// PublicPrefix is what clients connect to, paired 1:1 with VirtualPrefix,
	// which pods see. Neither changes over the life of a cluster.
	PublicPrefix  string `toml:"public-prefix"`
	VirtualPrefix string `toml:"virtual-prefix"`
	// Zone is the DNS zone of the pods' names.
	Zone string `toml:"zone"`
	// DNSListen is where clients ask for names; empty means port 53 on Address.
	DNSListen string `toml:"dns-listen"`
	// DNSUpstream are the name servers asked for pods' queries about all
	// other names, as ADDRESS or ADDRESS:PORT.
	DNSUpstream []string `toml:"dns-upstream"`
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `toml:"log-level"`
	LogFormat string `toml:"log-format"`
	// HoldLimit is for how long a moving pod's packets are queued at most; 0s
	// means that they never are, and get lost.
	HoldLimit string `toml:"hold-limit"`
	// ResyncInterval is the time between two looks at the kernel. It is for
	// tests; 0 means a minute.
	ResyncInterval time.Duration `toml:"-"`
}

// DefaultConfig is the configuration where nothing is said.
func DefaultConfig() Config {
	return Config{
		StateDir:            "/var/lib/podproxy",
		RunDir:              "/run/podproxy",
		CertificateLifetime: "168h",
		HoldLimit:           "30s",
		PublicPrefix:        "198.18.0.0/16",
		VirtualPrefix:       "100.64.0.0/16",
		Zone:                "pods.internal",
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
	physical  netip.Addr
	listen    netip.AddrPort
	prefixes  directory.Cluster
	dnsListen []netip.AddrPort
	upstreams []netip.AddrPort
	lifetime  time.Duration // of certificates
	holdLimit time.Duration
}

func (c Config) settings() (settings, error) {
	s := settings{Config: c}
	var err error
	if s.Name != "" {
		if err := pod.ValidateName(s.Name); err != nil {
			return s, fmt.Errorf("proxy name: %w", err)
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
	if s.holdLimit, err = time.ParseDuration(s.HoldLimit); err != nil || s.holdLimit < 0 {
		return s, fmt.Errorf("%w: hold-limit %q: want a time such as 30s", pod.ErrInvalid, s.HoldLimit)
	}
	if err := s.parseCluster(); err != nil {
		return s, err
	}
	return s, s.parseDNS()
}

func (s *settings) parseCluster() error {
	s.prefixes.Zone = s.Zone
	for _, p := range []struct {
		name, value string
		prefix      *netip.Prefix
	}{{"public-prefix", s.PublicPrefix, &s.prefixes.Public}, {"virtual-prefix", s.VirtualPrefix, &s.prefixes.Virtual}} {
		var err error
		if *p.prefix, err = netip.ParsePrefix(p.value); err != nil {
			return fmt.Errorf("%w: %s %q: want a prefix such as 198.18.0.0/16", pod.ErrInvalid, p.name, p.value)
		}
	}
	if err := s.prefixes.Validate(); err != nil {
		return err
	}
	for _, prefix := range []netip.Prefix{s.prefixes.Public, s.prefixes.Virtual} {
		if prefix.Contains(s.physical) {
			return fmt.Errorf("%w: the proxy's own address %s is in %s, which belongs to pods", pod.ErrInvalid, s.physical, prefix)
		}
	}
	return nil
}

func (s *settings) parseDNS() error {
	listen, err := daemon.AddrPort(s.DNSListen, netip.AddrPortFrom(s.physical, dnsPort))
	if err != nil {
		return fmt.Errorf("DNS listen address: %w", err)
	}
	s.dnsListen = []netip.AddrPort{listen}
	// Pods ask at the gateway; an unspecified address includes it.
	if gateway := netip.AddrPortFrom(pod.Gateway, dnsPort); !(listen.Addr().IsUnspecified() && listen.Port() == dnsPort) && listen != gateway {
		s.dnsListen = append(s.dnsListen, gateway)
	}
	for _, u := range s.DNSUpstream {
		if !strings.Contains(u, ":") {
			u = net.JoinHostPort(u, fmt.Sprint(dnsPort))
		}
		upstream, err := daemon.AddrPort(u, netip.AddrPort{})
		if err != nil {
			return fmt.Errorf("DNS upstream: %w", err)
		}
		s.upstreams = append(s.upstreams, upstream)
	}
	return nil
}

func (s *settings) datapath() datapath.Config {
	return datapath.Config{Physical: s.physical, PublicPrefix: s.prefixes.Public, VirtualPrefix: s.prefixes.Virtual}
}
