package cli

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"podd/pod"
)

// defaultContext is the podd of this machine. It is always there.
const (
	defaultContext = "default"
	defaultSocket  = "/run/podd/podd.sock"
)

// address is where a podd listens.
type address struct {
	network  string // "unix" or "tcp"
	location string
}

func (a address) String() string {
	if a.network == "unix" {
		return "unix://" + a.location
	}
	return "http://" + a.location
}

// baseURL is what requests are addressed to; for a socket the name means nothing.
func (a address) baseURL() string {
	if a.network == "unix" {
		return "http://podd"
	}
	return "http://" + a.location
}

// parseAddress reads unix:///PATH, /PATH, http://HOST:PORT or tcp://HOST:PORT.
func parseAddress(text string) (address, error) {
	if filepath.IsAbs(text) {
		return address{"unix", text}, nil
	}
	u, err := url.Parse(text)
	if err == nil {
		switch {
		case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
			return address{"unix", u.Path}, nil
		case (u.Scheme == "http" || u.Scheme == "tcp") && u.Port() != "" && u.Hostname() != "" && strings.Trim(u.Path, "/") == "":
			return address{"tcp", u.Host}, nil
		}
	}
	return address{}, fmt.Errorf("%w: address %q: want unix:///PATH or http://HOST:PORT", pod.ErrInvalid, text)
}

// connection is what the global flags say.
type connection struct {
	context, socket, url string
}

func (c *connection) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "context", Usage: "ask the podd of this `CONTEXT` (see podctl context)", Destination: &c.context},
		&cli.StringFlag{Name: "socket", Usage: "ask the podd that listens on the unix socket `PATH`", Destination: &c.socket},
		&cli.StringFlag{Name: "url", Usage: "ask the podd at `http://HOST:PORT`", Destination: &c.url},
	}
}

// resolve decides which podd to ask: flags before environment before the
// context in use before this machine's own.
func (c *connection) resolve(getenv func(string) string) (address, error) {
	given := 0
	for _, value := range []string{c.context, c.socket, c.url} {
		if value != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return address{}, fmt.Errorf("%w: give one of --context, --socket and --url", pod.ErrInvalid)
	case c.socket != "":
		path, err := filepath.Abs(c.socket)
		return address{"unix", path}, err
	case c.url != "":
		return parseAddress(c.url)
	case c.context != "":
		return contextAddress(c.context, "--context")
	case getenv("PODCTL_HOST") != "":
		a, err := parseAddress(getenv("PODCTL_HOST"))
		if err != nil {
			return a, fmt.Errorf("PODCTL_HOST: %w", err)
		}
		return a, nil
	case getenv("PODCTL_CONTEXT") != "":
		return contextAddress(getenv("PODCTL_CONTEXT"), "PODCTL_CONTEXT")
	}
	return contextAddress("", "")
}

// contextAddress is the address of a context; the one in use where name is
// empty. source says where the name comes from.
func contextAddress(name, source string) (address, error) {
	config, err := loadConfig()
	if err != nil {
		return address{}, err
	}
	if name == "" {
		name, source = config.Current, "the configuration"
	}
	if context, ok := config.Contexts[name]; ok {
		return parseAddress(context.Host)
	}
	if name == "" || name == defaultContext {
		return address{"unix", defaultSocket}, nil
	}
	return address{}, &hintedError{
		fmt.Errorf("%w: context %q (from %s)", pod.ErrNotFound, name, source),
		"podctl context ls lists the contexts",
	}
}
