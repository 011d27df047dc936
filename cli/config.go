package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"github.com/pelletier/go-toml/v2"
)

// config is what podctl remembers between invocations: the contexts.
type config struct {
	// Current is the name of the context in use; empty means the default.
	Current  string                   `toml:"current,omitempty"`
	Contexts map[string]contextConfig `toml:"contexts,omitempty"`
}

// contextConfig is one named podd.
type contextConfig struct {
	// Host is its address: unix:///PATH or http://HOST:PORT.
	Host string `toml:"host"`
	// Previous is the context that was in use before this one, where it is to
	// be chosen again when this one is removed.
	Previous string `toml:"previous,omitempty"`
}

// configPath is where the configuration is kept (XDG base directory
// specification).
func configPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the configuration directory: %w", err)
	}
	return filepath.Join(dir, "podctl", "config.toml"), nil
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
		if _, err := parseAddress(context.Host); err != nil {
			return nil, fmt.Errorf("reading %s: context %s: %w", path, name, err)
		}
	}
	return c, nil
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
