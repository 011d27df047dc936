package pager

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"podd/trust"
)

// revokedPoll is how often a connection's certificate is looked up again.
const revokedPoll = time.Second

// WriteRevoked tells all pagers that have the file in their options, and those that
// will, which certificates are not to be trusted any more: by their serial numbers.
// A pager is not told by podd itself since it may live longer.
func WriteRevoked(file string, serials map[string]bool) error {
	b, err := json.Marshal(slices.Sorted(maps.Keys(serials)))
	if err == nil {
		err = renameio.WriteFile(file, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("telling pagers what is revoked: %w", err)
	}
	return nil
}

// readRevoked reads what WriteRevoked wrote; nothing if there is no file.
func readRevoked(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var serials []string
	if err == nil {
		err = json.Unmarshal(b, &serials)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is revoked: %w", err)
	}
	return serials, nil
}

// endRevoked closes a connection when its other end's certificate is revoked, until
// ctx ends.
func (l *link) endRevoked(ctx context.Context, conn *tls.Conn) {
	ticker := time.NewTicker(revokedPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		revoked, err := readRevoked(l.o.RevokedFile)
		if err != nil {
			l.log.Warn("whether the source is still trusted is not known", "error", err)
			continue
		}
		if slices.Contains(revoked, trust.Serial(conn.ConnectionState().PeerCertificates[0])) {
			l.log.Warn("the certificate of the source was revoked; closing the connection", "source", l.o.Source)
			conn.Close()
			return
		}
	}
}
