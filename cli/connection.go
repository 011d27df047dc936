package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"podd/pod"
	"podd/trust"
)

// defaultContext is the daemon of this machine. It is always there.
const (
	defaultContext = "default"
	defaultSocket  = "/run/podd/podd.sock"
	// proxySocket is asked by default where there is no podd: it knows no
	// pods, but it knows the cluster.
	proxySocket = "/run/podproxy/podproxy.sock"
)

// address is where a daemon listens.
type address struct {
	network  string // "unix" or "tcp"
	location string
}

func (a address) String() string {
	if a.network == "unix" {
		return "unix://" + a.location
	}
	return "https://" + a.location
}

// parseAddress reads unix:///PATH, /PATH or https://HOST:PORT.
func parseAddress(text string) (address, error) {
	if filepath.IsAbs(text) {
		return address{"unix", text}, nil
	}
	u, err := url.Parse(text)
	if err == nil {
		remote := u.Port() != "" && u.Hostname() != "" && strings.Trim(u.Path, "/") == ""
		switch {
		case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
			return address{"unix", u.Path}, nil
		case u.Scheme == "https" && remote:
			return address{"tcp", u.Host}, nil
		case u.Scheme == "http" || u.Scheme == "tcp":
			return address{}, &hintedError{
				fmt.Errorf("%w: address %q: daemons are reached over TLS only: want https://HOST:PORT", pod.ErrInvalid, text), needToken,
			}
		}
	}
	return address{}, fmt.Errorf("%w: address %q: want unix:///PATH or https://HOST:PORT", pod.ErrInvalid, text)
}

// needToken is the hint for who has no certificate.
const needToken = `an admin makes a token with "podctl cluster user-token NAME --role operator"; "podctl context add CONTEXT @FILE" exchanges it for a certificate`

// target is whom to ask: the daemon behind a socket of this machine, or any of
// several daemons of a cluster.
type target struct {
	addresses []address
	// store has the certificate to show, and the authority to trust; nil for
	// a socket.
	store *trust.Store
	// context is the name of the context it comes from, if any.
	context string
}

func (t target) String() string {
	var words []string
	for _, a := range t.addresses {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}

// connection is what the global flags say.
type connection struct {
	context, socket, url string
}

func (c *connection) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "context", Usage: "ask the daemon of this `CONTEXT` (see podctl context)", Destination: &c.context},
		&cli.StringFlag{Name: "socket", Usage: "ask the daemon that listens on the unix socket `PATH`", Destination: &c.socket},
		&cli.StringFlag{Name: "url", Usage: "ask the daemon at `https://HOST:PORT`, with the context's certificate", Destination: &c.url},
	}
}

// resolve decides whom to ask: flags before environment before the context in
// use before this machine's own.
func (c *connection) resolve(getenv func(string) string) (target, error) {
	name, source := c.context, "--context"
	if name == "" {
		name, source = getenv("PODCTL_CONTEXT"), "PODCTL_CONTEXT"
	}
	switch {
	case c.socket != "" && (c.context != "" || c.url != ""):
		return target{}, fmt.Errorf("%w: give --socket, or --context and --url", pod.ErrInvalid)
	case c.socket != "":
		path, err := filepath.Abs(c.socket)
		return target{addresses: []address{{"unix", path}}}, err
	case c.url != "":
		return addressTarget(c.url, name, source)
	case c.context == "" && getenv("PODCTL_HOST") != "":
		t, err := addressTarget(getenv("PODCTL_HOST"), name, source)
		if err != nil {
			return t, fmt.Errorf("PODCTL_HOST: %w", err)
		}
		return t, nil
	}
	return contextTarget(name, source)
}

// addressTarget is a daemon by its address. For one that is not behind a socket
// the context has the certificate to show.
func addressTarget(text, context, source string) (target, error) {
	a, err := parseAddress(text)
	if err != nil {
		return target{}, err
	}
	if a.network == "unix" {
		return target{addresses: []address{a}}, nil
	}
	t, err := contextTarget(context, source)
	if err != nil {
		return target{}, err
	}
	if t.store == nil {
		return target{}, &hintedError{fmt.Errorf("%w: no certificate to show to %s: the context in use has none", pod.ErrUnknownCaller, a), needToken}
	}
	t.addresses = []address{a}
	return t, nil
}

// contextTarget is the target of a context; the one in use where name is
// empty. source says where the name comes from.
func contextTarget(name, source string) (target, error) {
	config, err := loadConfig()
	if err != nil {
		return target{}, err
	}
	if name == "" {
		name, source = config.Current, "the configuration"
	}
	context, ok := config.Contexts[name]
	switch {
	case ok:
		return context.target(name)
	case name == "" || name == defaultContext:
		return target{addresses: []address{localAddress(defaultSocket, proxySocket)}}, nil
	}
	return target{}, &hintedError{
		fmt.Errorf("%w: context %q (from %s)", pod.ErrNotFound, name, source),
		"podctl context ls lists the contexts",
	}
}

// localAddress is the socket of this machine's daemon: of podd, unless only
// podproxy is here.
func localAddress(podd, podproxy string) address {
	_, none := os.Stat(podd)
	if _, err := os.Stat(podproxy); errors.Is(none, fs.ErrNotExist) && err == nil {
		return address{"unix", podproxy}
	}
	return address{"unix", podd}
}

// target reads the context's certificate, if it has one.
func (c contextConfig) target(name string) (target, error) {
	t := target{context: name}
	for _, text := range c.addresses() {
		a, err := parseAddress(text)
		if err != nil {
			return t, fmt.Errorf("context %s: %w", name, err)
		}
		t.addresses = append(t.addresses, a)
	}
	if len(c.Hosts) == 0 {
		return t, nil
	}
	dir, err := credentialsDir(name)
	if err != nil {
		return t, err
	}
	if t.store, err = trust.Open(dir); err != nil {
		return t, &hintedError{fmt.Errorf("the certificate of context %s: %w", name, err), needToken}
	}
	if end := t.store.Leaf().NotAfter; time.Now().After(end) {
		return t, &hintedError{fmt.Errorf("%w: the certificate of context %s ended on %s", pod.ErrUnknownCaller, name, end.Local().Format(time.DateTime)), needToken}
	}
	return t, nil
}

// addresses are the socket's or the daemons'.
func (c contextConfig) addresses() []string {
	if c.Host != "" {
		return []string{c.Host}
	}
	return c.Hosts
}
