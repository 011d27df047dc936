package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"podd/directory"
	"podd/pod"
)

// EmbeddedDirectory as the directory's address makes the daemon run the
// directory in its own process.
const EmbeddedDirectory = "embedded"

// Endpoints parses a directory's address: nil when it is to be embedded, else
// the URLs. The error wraps pod.ErrInvalid.
func Endpoints(address string) ([]string, error) {
	if address == EmbeddedDirectory {
		return nil, nil
	}
	urls := strings.Split(address, ",")
	for _, url := range urls {
		if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
			return nil, fmt.Errorf("%w: directory %q: want %q or URLs such as https://10.0.0.5:2379", pod.ErrInvalid, url, EmbeddedDirectory)
		}
	}
	return urls, nil
}

// DirectoryOptions say which directory a daemon uses.
type DirectoryOptions struct {
	// Endpoints is nil when the directory is to be embedded.
	Endpoints []string
	// StateDir, Address and Name are for an embedded one: where its data is,
	// the address it listens at, and what its log calls it.
	StateDir string
	Address  netip.Addr
	Name     string
	Log      *slog.Logger
}

// Directory is the daemon's connection to the directory, and the directory
// itself if it is embedded.
type Directory struct {
	*directory.Directory
	embedded *directory.Embedded
}

// OpenDirectory connects to the directory, after starting it if it is to be
// embedded.
func OpenDirectory(ctx context.Context, o DirectoryOptions) (*Directory, error) {
	d := &Directory{}
	if o.Endpoints == nil {
		var err error
		d.embedded, err = directory.StartEmbedded(ctx, directory.EmbeddedOptions{
			DataDir: filepath.Join(o.StateDir, "directory"),
			Listen:  netip.AddrPortFrom(o.Address, directory.DefaultPort).String(),
			Name:    o.Name,
			Log:     o.Log,
		})
		if err != nil {
			return nil, err
		}
		o.Endpoints = []string{d.embedded.Endpoint()}
	}
	var err error
	if d.Directory, err = directory.Open(ctx, directory.Options{Endpoints: o.Endpoints, Log: o.Log}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// WatchEmbedded returns nil when ctx ends, or why an embedded directory stopped by
// itself.
func (d *Directory) WatchEmbedded(ctx context.Context) error {
	if d.embedded == nil {
		return nil
	}
	select {
	case err := <-d.embedded.Failed():
		return err
	case <-ctx.Done():
		return nil
	}
}

// Close ends the connection, and stops an embedded directory.
func (d *Directory) Close() error {
	var errs []error
	if d.Directory != nil {
		errs = append(errs, d.Directory.Close())
	}
	if d.embedded != nil {
		errs = append(errs, d.embedded.Close())
	}
	return errors.Join(errs...)
}
