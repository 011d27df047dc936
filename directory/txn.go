package directory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podd/pod"
)

// errLost says that the records changed between the read and the write.
var errLost = errors.New("lost a race for the record")

// retry runs try until it succeeds or fails for a reason that a fresh read
// can't change. try must read whatever it depends on, so that after a lost race
// or a lost reply it finds out by itself how things stand.
func (d *Directory) retry(ctx context.Context, what string, try func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	const maxPause = 32 * time.Millisecond
	patience := d.timeout / 8
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		// A member of etcd keeps a request that it has passed on to a leader
		// which died just then, for longer than all of this may take, while
		// another attempt would succeed. Each may take twice as long as the
		// one before, as the directory may just be slow.
		attempt, end := context.WithTimeout(bounded, patience)
		err := try(attempt)
		end()
		patience = min(2*patience, d.timeout)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errLost) && !unavailable(err) {
			return d.explain(ctx, what, err)
		}
		select {
		case <-bounded.Done():
			return d.explain(ctx, what, err)
		case <-time.After(rand.N(pause) + 1): // jitter parts the contenders
		}
	}
}

// get is one bounded read.
func (d *Directory) get(ctx context.Context, what, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	bounded, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	resp, err := d.etcd.Get(bounded, key, opts...)
	if err != nil {
		return nil, d.explain(ctx, what, err)
	}
	return resp, nil
}

// write makes the changes if all conditions hold; errLost when they don't.
func (d *Directory) write(ctx context.Context, conditions []clientv3.Cmp, changes ...clientv3.Op) error {
	resp, err := d.etcd.Txn(ctx).If(conditions...).Then(changes...).Commit()
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return errLost
	}
	return nil
}

// read gets several keys as they were at one revision. An absent one is nil.
func (d *Directory) read(ctx context.Context, keys ...string) ([]*mvccpb.KeyValue, error) {
	gets := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		gets[i] = clientv3.OpGet(key)
	}
	resp, err := d.etcd.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return nil, err
	}
	kvs := make([]*mvccpb.KeyValue, len(keys))
	for i, r := range resp.Responses {
		kvs[i] = first((*clientv3.GetResponse)(r.GetResponseRange()))
	}
	return kvs, nil
}

// first is the record a get found, nil when there is none.
func first(resp *clientv3.GetResponse) *mvccpb.KeyValue {
	if len(resp.Kvs) == 0 {
		return nil
	}
	return resp.Kvs[0]
}

// unchanged is the condition that key is still as it was read; kv is nil when
// it was absent.
func unchanged(key string, kv *mvccpb.KeyValue) clientv3.Cmp {
	var revision int64
	if kv != nil {
		revision = kv.ModRevision
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// attempts are the records of a pod that the tries of one operation have sent.
// Each is to be kept: a try whose reply was lost may take effect only after the
// next one has read, which then loses the race against the operation's own record.
type attempts []*pod.Pod

// stored is the try that kv holds; nil if it holds somebody else's record or is
// absent.
func (a attempts) stored(kv *mvccpb.KeyValue) *pod.Pod {
	if kv == nil {
		return nil
	}
	for _, p := range a {
		if bytes.Equal(kv.Value, encode(p)) {
			return p
		}
	}
	return nil
}

// exists is the condition that key is there.
func exists(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.Version(key), ">", 0)
}

// decode reads a record.
func decode[T any](kv *mvccpb.KeyValue) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(kv.Value, v); err != nil {
		return nil, fmt.Errorf("record %s of the directory is damaged: %w", kv.Key, err)
	}
	return v, nil
}

// put is the change that stores v under key.
func put(key string, v any, opts ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpPut(key, string(encode(v)), opts...)
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err)) // a record type that can't be encoded is a bug
	}
	return data
}

// explain adds what was being done and turns etcd's conditions into the pod
// package's. ctx is the caller's, which tells its own cancellation from ours.
func (d *Directory) explain(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case errors.Is(err, errLost):
		return fmt.Errorf("%s: %w: directory at %s: others kept changing the record for %s", what, pod.ErrUnavailable, d.endpoints, d.timeout)
	case unavailable(err):
		return fmt.Errorf("%s: %w: directory at %s: %s", what, pod.ErrUnavailable, d.endpoints, reason(err))
	case denied(err):
		return fmt.Errorf("%s: %w: directory at %s: %s", what, pod.ErrDenied, d.endpoints, status.Convert(err).Message())
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: directory at %s: %w", what, pod.ErrExhausted, d.endpoints, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// unavailable reports whether err says that etcd could not answer now. The
// change asked for may have been made all the same.
func unavailable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rpctypes.ErrTimeout) || errors.Is(err, rpctypes.ErrNoLeader) {
		return true
	}
	switch errorCode(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.Internal:
		// What gRPC makes of a member that ends in mid-answer: the stream's
		// data had an end and its status is missing.
		return strings.Contains(err.Error(), "without sending trailers")
	}
	return false
}

// denied reports whether the directory does not take this client for one of the
// cluster's daemons.
func denied(err error) bool {
	s, ok := status.FromError(err)
	return ok && (s.Code() == codes.PermissionDenied || s.Code() == codes.Unauthenticated)
}

func errorCode(err error) codes.Code {
	var etcdErr rpctypes.EtcdError
	if errors.As(err, &etcdErr) {
		return etcdErr.Code()
	}
	return status.Code(err)
}

func reason(err error) string {
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unavailable {
		return s.Message()
	}
	if errors.Is(err, context.DeadlineExceeded) || errorCode(err) == codes.DeadlineExceeded {
		return "no answer in time"
	}
	return err.Error()
}
