package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"podd/pod"
)

// LoadConfig reads a TOML file over defaults. A key that T does not have is an
// error that names the line. The error wraps pod.ErrInvalid unless the file
// can't be read.
func LoadConfig[T any](path string, defaults T) (T, error) {
	config := defaults
	data, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("reading the configuration: %w", err)
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&config)
	var strict *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return config, fmt.Errorf("%w: configuration %s: unknown key:\n%s", pod.ErrInvalid, path, strict.String())
	case errors.As(err, &syntax):
		return config, fmt.Errorf("%w: configuration %s:\n%s", pod.ErrInvalid, path, syntax.String())
	case err != nil:
		return config, fmt.Errorf("%w: configuration %s: %w", pod.ErrInvalid, path, err)
	}
	return config, nil
}

// Name is the given name in the cluster, or else the machine's host name up to
// the first dot. The error wraps pod.ErrInvalid.
func Name(given string) (string, error) {
	if given == "" {
		machine, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("finding the machine's name: %w", err)
		}
		given, _, _ = strings.Cut(strings.ToLower(machine), ".")
	}
	return given, pod.ValidateName(given)
}

// Address parses the daemon's own address on its subnet. The error wraps
// pod.ErrInvalid.
func Address(given string) (netip.Addr, error) {
	if given == "" {
		return netip.Addr{}, fmt.Errorf("%w: no address: set --address to this machine's address on its own subnet", pod.ErrInvalid)
	}
	address, err := netip.ParseAddr(given)
	if err != nil || !address.Is4() || address.IsUnspecified() {
		return address, fmt.Errorf("%w: address %q: want an IPv4 address of this machine", pod.ErrInvalid, given)
	}
	return address, nil
}

// AddrPort parses an address with a port; empty means fallback, if that is
// valid. The error wraps pod.ErrInvalid.
func AddrPort(given string, fallback netip.AddrPort) (netip.AddrPort, error) {
	if given == "" && fallback.IsValid() {
		return fallback, nil
	}
	a, err := netip.ParseAddrPort(given)
	if err != nil || !a.Addr().Is4() {
		return a, fmt.Errorf("%w: %q: want IPv4-ADDRESS:PORT", pod.ErrInvalid, given)
	}
	return a, nil
}

// CheckDirs checks the directories a daemon keeps things in: absolute paths.
func CheckDirs(stateDir, runDir string) error {
	for name, path := range map[string]string{"state-dir": stateDir, "run-dir": runDir} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%w: %s %q: want an absolute path", pod.ErrInvalid, name, path)
		}
	}
	return nil
}

// CheckPrivate makes sure that only the daemon's user can get at a file with a
// secret in it. The error wraps pod.ErrUntrusted and says what to do.
func CheckPrivate(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	if st.Mode()&0o077 == 0 {
		return nil
	}
	mode := 0o600
	if st.IsDir() {
		mode = 0o700
	}
	return fmt.Errorf("%w: others may open %s: chmod %o %s", pod.ErrUntrusted, path, mode, path)
}

// CertificateLifetime parses for how long daemons' certificates are good. The
// error wraps pod.ErrInvalid.
func CertificateLifetime(given string) (time.Duration, error) {
	const shortest = 10 * time.Second
	lifetime, err := time.ParseDuration(given)
	if err != nil || lifetime < shortest {
		return 0, fmt.Errorf("%w: certificate-lifetime %q: want at least %s, such as 168h", pod.ErrInvalid, given, shortest)
	}
	return lifetime, nil
}

// NewLogger makes the log that goes to standard error. level is debug, info,
// warn or error, format text or json; else the error wraps pod.ErrInvalid.
func NewLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: log level %q: want debug, info, warn or error", pod.ErrInvalid, level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return nil, fmt.Errorf("%w: log format %q: want text or json", pod.ErrInvalid, format)
}
