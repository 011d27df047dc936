package directory

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podd/pod"
)

// lateKV is an etcd that takes its first change, does not answer in time, and
// makes the change only when the next one has been sent: after the reads which
// that one rests on.
type lateKV struct {
	clientv3.KV
	kept    *lateTxn
	applied bool
}

func (kv *lateKV) Txn(ctx context.Context) clientv3.Txn {
	return &lateTxn{kv: kv}
}

type lateTxn struct {
	kv         *lateKV
	conditions []clientv3.Cmp
	changes    []clientv3.Op
}

func (t *lateTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.conditions = c; return t }
func (t *lateTxn) Then(o ...clientv3.Op) clientv3.Txn { t.changes = o; return t }
func (t *lateTxn) Else(...clientv3.Op) clientv3.Txn   { panic("no operation of the directory has an else") }

func (t *lateTxn) Commit() (*clientv3.TxnResponse, error) {
	// The test's own, as an attempt's ends with the attempt.
	ctx := context.Background()
	if t.writes() && t.kv.kept == nil {
		t.kv.kept = t
		return nil, status.Error(codes.Unavailable, "etcdserver: request timed out")
	}
	if t.writes() && !t.kv.applied {
		resp, err := t.kv.KV.Txn(ctx).If(t.kv.kept.conditions...).Then(t.kv.kept.changes...).Commit()
		if err != nil {
			return nil, err
		}
		t.kv.applied = resp.Succeeded
	}
	return t.kv.KV.Txn(ctx).If(t.conditions...).Then(t.changes...).Commit()
}

func (t *lateTxn) writes() bool {
	for _, op := range t.changes {
		if op.IsPut() || op.IsDelete() {
			return true
		}
	}
	return false
}

// TestCreateAppliedLate is a slow directory that makes a change when the next
// attempt is under way: the record is the creator's, whichever attempt it is of.
func TestCreateAppliedLate(t *testing.T) {
	d := newDirectory(t)
	requireLate := func(operation string, do func() (*pod.Pod, error)) {
		t.Helper()
		late := &lateKV{KV: d.etcd.KV}
		d.etcd.KV = late
		p, err := do()
		d.etcd.KV = late.KV
		if err != nil {
			t.Fatalf("%s: %v", operation, err)
		}
		if !late.applied {
			t.Fatalf("%s: the first attempt was not applied", operation)
		}
		stored, err := d.Pod(t.Context(), p.Name())
		if err != nil {
			t.Fatal(err)
		}
		if string(encode(stored)) != string(encode(p)) {
			t.Errorf("%s: stored %s, returned %s", operation, encode(stored), encode(p))
		}
	}
	requireLate("create", func() (*pod.Pod, error) { return d.CreatePod(t.Context(), spec("alice"), "a") })
	file := Restored{Spec: spec("bob"), Virtual: cluster.Virtual.Addr().Next().Next().Next().Next(), Epoch: 3}
	requireLate("restore", func() (*pod.Pod, error) { return d.RestorePod(t.Context(), file, "a") })
}
