package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podd/directory"
	"podd/pod"
	"podd/trust"
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
		if !strings.HasPrefix(url, "https://") {
			return nil, fmt.Errorf("%w: directory %q: want %q or URLs such as https://10.0.0.5:2379", pod.ErrInvalid, url, EmbeddedDirectory)
		}
	}
	return urls, nil
}

// DirectoryOptions say which directory a daemon uses.
type DirectoryOptions struct {
	// Address is as in the configuration (Endpoints); empty means what the
	// credentials say.
	Address string
	// CA, Certificate and Key are PEM files for an etcd cluster that is not
	// the podd cluster's own; all empty where it is.
	CA, Certificate, Key string
	// StateDir, Listen and Name are for an embedded one: where its data is,
	// the address it listens at, and what its log calls it.
	StateDir string
	Listen   netip.AddrPort
	Name     string
	// Unsynced is as in directory.EmbeddedOptions.
	Unsynced bool
	// Credentials are the daemon's.
	Credentials *trust.Store
	Log         *slog.Logger
}

// tls is for the connection to the directory.
func (o *DirectoryOptions) tls() (*tls.Config, error) {
	if o.CA == "" && o.Certificate == "" && o.Key == "" {
		return o.Credentials.DirectoryTLS(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CA != "" {
		authority, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("reading directory-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("%w: directory-ca %s: no certificate in it", pod.ErrInvalid, o.CA)
		}
	}
	if o.Certificate == "" && o.Key == "" {
		return config, nil
	}
	if err := CheckPrivate(o.Key); err != nil {
		return nil, fmt.Errorf("directory-key: %w", err)
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(o.Certificate, o.Key)
		if err != nil {
			return nil, fmt.Errorf("reading directory-cert and directory-key: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	// Whoever renews the files need not restart the daemon.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return config, nil
}

// Directory is the daemon's connection to the directory, and the directory
// itself if it is embedded.
type Directory struct {
	*directory.Directory
	embedded *directory.Embedded
	urls     string // for other daemons
}

// OpenDirectory connects to the directory, after starting it if it is to be
// embedded.
func OpenDirectory(ctx context.Context, o DirectoryOptions) (*Directory, error) {
	if o.Address == "" {
		o.Address = o.Credentials.Info().Directory
	}
	endpoints, err := Endpoints(o.Address)
	if err != nil {
		return nil, err
	}
	config, err := o.tls()
	if err != nil {
		return nil, err
	}
	d := &Directory{urls: strings.Join(endpoints, ",")}
	if endpoints == nil {
		if !slices.Contains(o.Credentials.Leaf().DNSNames, trust.DirectoryName) {
			return nil, fmt.Errorf("%w: the directory is not on this machine but at %s; leave --directory out", pod.ErrInvalid, o.Credentials.Info().Directory)
		}
		d.embedded, err = directory.StartEmbedded(ctx, directory.EmbeddedOptions{
			DataDir:     filepath.Join(o.StateDir, "directory"),
			Listen:      o.Listen.String(),
			Name:        o.Name,
			Credentials: o.Credentials,
			Log:         o.Log,
			Unsynced:    o.Unsynced,
		})
		if err != nil {
			return nil, err
		}
		endpoints, d.urls = []string{d.embedded.Endpoint()}, d.embedded.Endpoint()
		config = o.Credentials.DirectoryTLS()
	}
	if d.Directory, err = directory.Open(ctx, directory.Options{Endpoints: endpoints, TLS: config, Log: o.Log}); err != nil {
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
