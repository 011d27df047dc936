package directory

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podd/pod"
	"podd/trust"
)

// slowKV is an etcd that makes the first change it is sent and does not answer
// in time. If late, it makes it only when the next change has been sent: after
// the reads which that one rests on.
type slowKV struct {
	clientv3.KV
	late bool
	// first makes the first change; nil when there was none or it was made.
	first func() error
	asked bool
}

var errSlow = status.Error(codes.Unavailable, "etcdserver: request timed out")

// change makes a change as a slow etcd does; errSlow instead of an answer.
func (kv *slowKV) change(do func() error) error {
	if !kv.asked {
		kv.asked, kv.first = true, do
		if !kv.late {
			if err := kv.makeFirst(); err != nil {
				return err
			}
		}
		return errSlow
	}
	if err := kv.makeFirst(); err != nil {
		return err
	}
	return do()
}

func (kv *slowKV) makeFirst() error {
	first := kv.first
	kv.first = nil
	if first == nil {
		return nil
	}
	return first()
}

func (kv *slowKV) Delete(_ context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.DeleteResponse, err error) {
	err = kv.change(func() (err error) {
		resp, err = kv.KV.Delete(context.Background(), key, opts...)
		return err
	})
	return resp, err
}

func (kv *slowKV) Txn(context.Context) clientv3.Txn { return &slowTxn{kv: kv} }

type slowTxn struct {
	kv         *slowKV
	conditions []clientv3.Cmp
	changes    []clientv3.Op
}

func (t *slowTxn) If(c ...clientv3.Cmp) clientv3.Txn  { t.conditions = c; return t }
func (t *slowTxn) Then(o ...clientv3.Op) clientv3.Txn { t.changes = o; return t }
func (t *slowTxn) Else(...clientv3.Op) clientv3.Txn   { panic("nothing here has an else") }

func (t *slowTxn) Commit() (resp *clientv3.TxnResponse, err error) {
	commit := func() error {
		// Not the attempt's context, which may end before.
		resp, err = t.kv.KV.Txn(context.Background()).If(t.conditions...).Then(t.changes...).Commit()
		return err
	}
	for _, op := range t.changes {
		if op.IsPut() || op.IsDelete() {
			return resp, t.kv.change(commit)
		}
	}
	return resp, commit()
}

// TestSlowDirectory makes the first attempt of every change one that is made
// without an answer: the operation must take what it has done itself for its
// own doing, and not for somebody else's.
func TestSlowDirectory(t *testing.T) {
	for name, late := range map[string]bool{"answer lost": false, "made late": true} {
		t.Run(name, func(t *testing.T) { slowDirectory(t, late) })
	}
}

func slowDirectory(t *testing.T, late bool) {
	ctx, d := t.Context(), newDirectory(t)
	slowly := func(operation string, do func() error) {
		t.Helper()
		slow := &slowKV{KV: d.etcd.KV, late: late}
		d.etcd.KV = slow
		err := do()
		d.etcd.KV = slow.KV
		if err != nil {
			t.Fatalf("%s: %v", operation, err)
		}
		if !slow.asked || slow.first != nil {
			t.Fatalf("%s: the first attempt was not made", operation)
		}
	}
	requireStored := func(p *pod.Pod) {
		t.Helper()
		if stored, err := d.Pod(ctx, p.Name()); err != nil {
			t.Fatal(err)
		} else if string(encode(stored)) != string(encode(p)) {
			t.Errorf("stored %s, returned %s", encode(stored), encode(p))
		}
	}
	run := func(name string) {
		t.Helper()
		slowly("UpdatePod", func() error {
			return d.UpdatePod(ctx, name, func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil })
		})
	}

	var p *pod.Pod
	slowly("CreatePod", func() (err error) { p, err = d.CreatePod(ctx, spec("alice"), "a"); return err })
	requireStored(p)
	run("alice")

	move := func(target string) (m *pod.Move) {
		t.Helper()
		slowly("BeginMove", func() (err error) { m, err = d.BeginMove(ctx, "alice", target, pod.StrategyAuto); return err })
		slowly("ChooseStrategy", func() error { return d.ChooseStrategy(ctx, m.ID, pod.StrategyStopCopy, "it is small") })
		slowly("SetMoveStage", func() error { return d.SetMoveStage(ctx, m.ID, pod.StageHold) })
		slowly("SetHeld", func() error { return d.SetHeld(ctx, m.ID, true) })
		return m
	}
	m := move("b")
	slowly("AbortMove", func() error { return d.AbortMove(ctx, m.ID, pod.StageDump, nil) })
	m = move("c")
	slowly("CancelMove", func() error { return d.CancelMove(ctx, m.ID, pod.StageDump, nil) })
	slowly("AbortMove", func() error { return d.AbortMove(ctx, m.ID, pod.StageDump, nil) })
	m = move("b")
	slowly("CommitMove", func() error { return d.CommitMove(ctx, m.ID) })
	slowly("FinishMove", func() error { return d.FinishMove(ctx, m.ID, &pod.Receipt{}) })

	stop(t, d, "alice", "file")
	p, err := d.Pod(ctx, "alice")
	if err != nil {
		t.Fatal(err)
	}
	slowly("RestorePod", func() (err error) { p, err = d.RestorePod(ctx, written(p, "file"), "c"); return err })
	requireStored(p)
	slowly("UndoCreate", func() error { return d.UndoCreate(ctx, "alice", p.Binding.Epoch) })
	if p, err = d.Pod(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	slowly("RestorePod", func() (err error) { p, err = d.RestorePod(ctx, written(p, "file"), "c"); return err })
	slowly("StartRestored", func() (err error) { p, err = d.StartRestored(ctx, "alice", p.Binding.Epoch); return err })
	requireStored(p)
	slowly("DeletePod", func() error { return d.DeletePod(ctx, "alice") })

	end := time.Now().Add(time.Hour)
	slowly("CreateToken", func() error { return d.CreateToken(ctx, TokenRecord{ID: "t", SecretHash: "h", ExpiresAt: end}) })
	slowly("UseToken", func() error { _, err := d.UseToken(ctx, "t", "h", "key"); return err })
	slowly("DeleteToken", func() error { return d.DeleteToken(ctx, "t") })
	wantErr(t, d.DeleteToken(ctx, "t"), pod.ErrNotFound)

	user := trust.Identity{Kind: trust.KindUser, Name: "carol", Role: trust.RoleAdmin}
	slowly("AddCertificate", func() error {
		return d.AddCertificate(ctx, user, Certificate{Serial: "1", ExpiresAt: end}, false)
	})
	slowly("Revoke", func() error { return d.Revoke(ctx, user) })
	wantErr(t, d.Revoke(ctx, user), pod.ErrNotFound)

	slowly("AskRelay", func() error { return d.AskRelay(ctx, Relay{ID: "r", From: "a", To: "b"}, time.Hour) })
	slowly("EndRelay", func() error { return d.EndRelay(ctx, "r") })

	var r *Registration
	slowly("RegisterHost", func() (err error) { r, err = d.RegisterHost(ctx, host("d", 4)); return err })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	slowly("RemoveHost", func() error { return d.RemoveHost(ctx, "d") })
	wantErr(t, d.RemoveHost(ctx, "d"), pod.ErrNotFound)
}
