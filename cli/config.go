package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/pelletier/go-toml/v2"

	"podd/pod"
)

// config is what podctl remembers between invocations: the contexts.
type config struct {
	// Current is the name of the context in use; empty means the default.
	Current  string                   `toml:"current,omitempty"`
	Contexts map[string]contextConfig `toml:"contexts,omitempty"`
}

// contextConfig is one named daemon of this machine, or a cluster.
type contextConfig struct {
	// Host is the address of a daemon's socket: unix:///PATH.
	Host string `toml:"host,omitempty"`
	// Hosts are the addresses of a cluster's daemons, to be asked in turn:
	// https://HOST:PORT. The credentials are in credentialsDir.
	Hosts []string `toml:"hosts,omitempty"`
	// Previous is the context that was in use before this one, where it is to
	// be chosen again when this one is removed.
	Previous string `toml:"previous,omitempty"`
}

// configDir is where podctl keeps its configuration and credentials (XDG base
// directory specification).
func configDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the configuration directory: %w", err)
	}
	return filepath.Join(dir, "podctl"), nil
}

// credentialsDir has the key and certificate of a context.
func credentialsDir(context string) (string, error) {
	dir, err := configDir()
	return filepath.Join(dir, "credentials", context), err
}

// configPath is where the configuration is kept.
func configPath() (string, error) {
	dir, err := configDir()
	return filepath.Join(dir, "config.toml"), err
}

// loadConfig reads the configuration; a file that does not exist is an empty one.
func loadConfig() (*config, error) {
	c := &config{Contexts: map[string]contextConfig{}}
	path, err := configPath()
	if err != nil {
		// Without a home there is no configuration, which is no error until
		// somebody wants to write one.
		return c, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			err = fmt.Errorf("unknown key:\n%s", strict.String())
		}
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	for name, context := range c.Contexts {
		if err := pod.ValidateName(name); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if err := context.check(); err != nil {
			return nil, fmt.Errorf("reading %s: context %s: %w", path, name, err)
		}
	}
	return c, nil
}

// check looks at what a user may have edited.
func (c contextConfig) check() error {
	if (c.Host == "") == (len(c.Hosts) == 0) {
		return fmt.Errorf("%w: want one of host and hosts", pod.ErrInvalid)
	}
	for _, text := range c.addresses() {
		a, err := parseAddress(text)
		if err != nil {
			return err
		}
		if socket := a.network == "unix"; socket != (c.Host != "") {
			return fmt.Errorf("%w: %s: host is a socket, hosts are addresses with https", pod.ErrInvalid, text)
		}
	}
	return nil
}

// save replaces the configuration file in one step. Only the user may read it.
func (c *config) save() error {
	path, err := configPath()
	if err != nil {
		return err
	}
	content, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding the configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("saving the configuration: %w", err)
	}
	if err := renameio.WriteFile(path, content, 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("saving the configuration: %w", err)
	}
	return nil
}

// set makes or replaces a context.
func (c *config) set(name string, context contextConfig) {
	if c.Contexts == nil {
		c.Contexts = map[string]contextConfig{}
	}
	c.Contexts[name] = context
}

// remove forgets a context. When it was in use, the one before it is again.
func (c *config) remove(name string) {
	previous := c.Contexts[name].Previous
	delete(c.Contexts, name)
	if c.Current == name {
		c.Current = ""
		if _, ok := c.Contexts[previous]; ok {
			c.Current = previous
		}
	}
}
