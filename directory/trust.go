package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
	"podd/trust"
)

const (
	tokenPrefix   = root + "tokens/"
	memberPrefix  = root + "members/"
	revokedPrefix = root + "revoked/"
)

// TokenRecord is what is known of a token: enough to recognize it and too
// little to use it.
type TokenRecord struct {
	ID string `json:"id"`
	// Kind, Name and Role are who may join with it; an empty name leaves the
	// choice to the holder.
	Kind trust.Kind `json:"kind"`
	Name string     `json:"name,omitempty"`
	Role trust.Role `json:"role,omitempty"`
	// SecretHash is trust.SecretHash of the secret.
	SecretHash string    `json:"secretHash"`
	CreatedBy  string    `json:"createdBy"`
	ExpiresAt  time.Time `json:"expiresAt"`
	// UsedBy is a hash of the public key that used it, empty until then.
	UsedBy string `json:"usedBy,omitempty"`
}

// Member is somebody who has certificates.
type Member struct {
	Kind trust.Kind `json:"kind"`
	Name string     `json:"name"`
	Role trust.Role `json:"role,omitempty"`
	// Certificates are those that have not expired.
	Certificates []Certificate `json:"certificates"`
	JoinedAt     time.Time     `json:"joinedAt"`
}

// Certificate is one that was issued.
type Certificate struct {
	Serial    string    `json:"serial"`
	ExpiresAt time.Time `json:"expiresAt"`
}

// Identity is who the member is.
func (m *Member) Identity() trust.Identity {
	return trust.Identity{Kind: m.Kind, Name: m.Name, Role: m.Role}
}

// ExpiresAt is when the last of the member's certificates ends.
func (m *Member) ExpiresAt() time.Time {
	var last time.Time
	for _, c := range m.Certificates {
		if c.ExpiresAt.After(last) {
			last = c.ExpiresAt
		}
	}
	return last
}

// CreateToken stores a token. It goes by itself when it expires.
func (d *Directory) CreateToken(ctx context.Context, t TokenRecord) error {
	key := tokenPrefix + t.ID
	return d.retry(ctx, "storing token "+t.ID, func(ctx context.Context) error {
		lease, err := d.leaseUntil(ctx, t.ExpiresAt)
		if err != nil {
			return err
		}
		return d.write(ctx, nil, put(key, t, clientv3.WithLease(lease)))
	})
}

// leaseUntil makes a lease that ends soon after a time: records that are of no
// use afterwards remove themselves.
func (d *Directory) leaseUntil(ctx context.Context, end time.Time) (clientv3.LeaseID, error) {
	seconds := math.Ceil(time.Until(end).Seconds()) + 1
	lease, err := d.etcd.Grant(ctx, max(int64(seconds), 1))
	if err != nil {
		return 0, err
	}
	return lease.ID, nil
}

// Tokens lists the tokens that have not expired.
func (d *Directory) Tokens(ctx context.Context) ([]TokenRecord, error) {
	return listRecords[TokenRecord](ctx, d, "listing tokens", tokenPrefix)
}

func listRecords[T any](ctx context.Context, d *Directory, what, prefix string) ([]T, error) {
	resp, err := d.get(ctx, what, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		record, err := decode[T](kv)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, *record)
	}
	return out, nil
}

// DeleteToken forgets a token. The error wraps pod.ErrNotFound when there is
// none of that ID.
func (d *Directory) DeleteToken(ctx context.Context, id string) error {
	tried := false
	return d.retry(ctx, "deleting token "+id, func(ctx context.Context) error {
		resp, err := d.etcd.Delete(ctx, tokenPrefix+id)
		if err != nil {
			tried = true
			return err
		}
		if resp.Deleted == 0 && !tried {
			return fmt.Errorf("token %q: %w", id, pod.ErrNotFound)
		}
		return nil // or gone by the attempt whose reply was lost
	})
}

// errBadToken does not tell which of its reasons it was: only the holder of the
// secret is to learn anything.
var errBadToken = fmt.Errorf("%w: the token is unknown, used up or has expired; podctl cluster join-token and user-token make new ones", pod.ErrDenied)

// UseToken gives the token with that ID and secret to the holder of a public
// key, whose hash is usedBy. The same one may ask again until the token expires,
// should the answer be lost. The error wraps pod.ErrDenied.
func (d *Directory) UseToken(ctx context.Context, id, secretHash, usedBy string) (*TokenRecord, error) {
	var t *TokenRecord
	key := tokenPrefix + id
	err := d.retry(ctx, "using token "+id, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key)
		if err != nil {
			return err
		}
		if kvs[0] == nil {
			return errBadToken
		}
		if t, err = decode[TokenRecord](kvs[0]); err != nil {
			return err
		}
		switch {
		case t.SecretHash != secretHash, time.Now().After(t.ExpiresAt), t.UsedBy != "" && t.UsedBy != usedBy:
			return errBadToken
		case t.UsedBy == usedBy:
			return nil
		}
		t.UsedBy = usedBy
		return d.write(ctx, one(unchanged(key, kvs[0])), put(key, t, clientv3.WithLease(clientv3.LeaseID(kvs[0].Lease))))
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// AddCertificate records that a certificate was issued to a member. One that
// renews must be a member still: the error wraps pod.ErrDenied when it was
// turned out.
func (d *Directory) AddCertificate(ctx context.Context, i trust.Identity, c Certificate, renewal bool) error {
	key := memberPrefix + i.Key()
	return d.retry(ctx, "recording a certificate of "+i.String(), func(ctx context.Context) error {
		kvs, err := d.read(ctx, key)
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		m := &Member{JoinedAt: now}
		if kvs[0] != nil {
			if m, err = decode[Member](kvs[0]); err != nil {
				return err
			}
		} else if renewal {
			return fmt.Errorf("%w: %s is no member of the cluster any more", pod.ErrDenied, i)
		}
		m.Kind, m.Name, m.Role = i.Kind, i.Name, i.Role
		m.Certificates = slices.DeleteFunc(m.Certificates, func(old Certificate) bool {
			return old.Serial == c.Serial || now.After(old.ExpiresAt)
		})
		m.Certificates = append(m.Certificates, c)
		return d.write(ctx, one(unchanged(key, kvs[0])), put(key, m))
	})
}

// Members lists those who have joined and were not turned out.
func (d *Directory) Members(ctx context.Context) ([]Member, error) {
	return listRecords[Member](ctx, d, "listing members", memberPrefix)
}

// Revoke turns a member out: its certificates count no more, and it gets no
// others. The error wraps pod.ErrNotFound when it is none.
func (d *Directory) Revoke(ctx context.Context, i trust.Identity) error {
	tried := false
	return d.retry(ctx, "turning out "+i.String(), func(ctx context.Context) error {
		conditions, changes, err := d.revocation(ctx, i)
		switch {
		case err != nil:
			return err
		case len(changes) == 0 && tried:
			return nil // the attempt whose reply was lost
		case len(changes) == 0:
			return fmt.Errorf("%s %q: %w", i.Kind, i.Name, pod.ErrNotFound)
		}
		tried = true
		return d.write(ctx, conditions, changes...)
	})
}

// revocation is what has to be written to turn a member out; nothing if it is
// none.
func (d *Directory) revocation(ctx context.Context, i trust.Identity) ([]clientv3.Cmp, []clientv3.Op, error) {
	key := memberPrefix + i.Key()
	kvs, err := d.read(ctx, key)
	if err != nil || kvs[0] == nil {
		return one(unchanged(key, nil)), nil, err
	}
	m, err := decode[Member](kvs[0])
	if err != nil {
		return nil, nil, err
	}
	changes := []clientv3.Op{clientv3.OpDelete(key)}
	for _, c := range m.Certificates {
		// A clock that is slow takes it for good for a while longer.
		const skew = time.Hour
		lease, err := d.leaseUntil(ctx, c.ExpiresAt.Add(skew))
		if err != nil {
			return nil, nil, err
		}
		changes = append(changes, put(revokedPrefix+c.Serial, i.Key(), clientv3.WithLease(lease)))
	}
	return one(unchanged(key, kvs[0])), changes, nil
}

// WatchRevoked delivers the serial numbers of the certificates that were revoked
// and have not expired, and again whenever there are others. The channel is
// closed when ctx ends; interruptions are survived.
func (d *Directory) WatchRevoked(ctx context.Context) <-chan map[string]bool {
	return watch(ctx, d, slog.LevelWarn, "what is revoked", d.followRevoked)
}

func (d *Directory) followRevoked(ctx context.Context, publish func(map[string]bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := d.get(ctx, "reading what is revoked", revokedPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	set := make(map[string]bool, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		set[strings.TrimPrefix(string(kv.Key), revokedPrefix)] = true
	}
	publish(maps.Clone(set))
	events := d.etcd.Watch(clientv3.WithRequireLeader(ctx), revokedPrefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, e := range resp.Events {
			serial := strings.TrimPrefix(string(e.Kv.Key), revokedPrefix)
			if e.Type == mvccpb.DELETE {
				delete(set, serial)
			} else {
				set[serial] = true
			}
		}
		if len(resp.Events) > 0 {
			publish(maps.Clone(set))
		}
	}
	return errors.New("the watch ended")
}
