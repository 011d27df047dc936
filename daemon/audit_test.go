package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

// TestAuditOfCalls makes calls of every kind, some of which are to be recorded.
func TestAuditOfCalls(t *testing.T) {
	n := newIssuer(t, 0)
	began := time.Now()
	client, local := n.client(n.credentials(operator)), n.local()
	const service = "/podd.v1.PodService/"
	for _, call := range []struct{ procedure, message string }{
		{"ListPods", "{}"},
		{"StopPod", `{"pod":"alice"}`},
		{"Exec", envelope(`{"start":{"pod":"bob"}}`)},
		{"CreatePod", `{"spec":{"name":"carol","image":"dir:/"}}`},
		{"Frobnicate", "{}"},
	} {
		if _, err := post(t, client, n.url()+service+call.procedure, call.message, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := post(t, client, n.url()+"/podd.v1.ImageService/RemoveImage", `{"name":"x"}`, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := post(t, n.client(nil), n.url()+service+"KillPod", "{}", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.trusted(local).CreateToken(t.Context(), connect.NewRequest(&poddv1.CreateTokenRequest{Kind: "host", Name: "b"})); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range n.audited() {
		got = append(got, fmt.Sprintf("%s|%s|%s|%s", r.Caller, method(r.Procedure), r.Subject, r.Result))
		if r.Time.Before(began.Add(-time.Second)) || r.Time.After(time.Now()) || r.Duration < 0 || (r.Result == "ok") != (r.Error == "") {
			t.Errorf("record %+v", r)
		}
		if local := strings.HasPrefix(r.Address, "process "); local != strings.HasPrefix(r.Caller, "local") || !local && !strings.HasPrefix(r.Address, "127.0.0.1:") {
			t.Errorf("%s calls from %s", r.Caller, r.Address)
		}
	}
	want := []string{
		"user olga (operator)|StopPod|pod alice|unimplemented",
		"user olga (operator)|Exec||unimplemented", // nobody has read the message
		"user olga (operator)|CreatePod|pod carol image dir:/|permission_denied",
		"user olga (operator)|RemoveImage||permission_denied",
		"nobody|KillPod||unauthenticated",
		localName() + "|CreateToken|host b|ok",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	st, err := os.Stat(filepath.Join(n.state, "audit.jsonl"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", st.Mode(), err)
	}
}

func localName() string {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Sprintf("local user %d (admin)", uid)
	}
	return "local root (admin)"
}

// streams has a handler that says how a stream's call is recorded at its end.
type streams struct {
	poddv1connect.UnimplementedPodServiceHandler
}

func (streams) Exec(_ context.Context, stream *connect.BidiStream[poddv1.ExecRequest, poddv1.ExecResponse]) error {
	m, err := stream.Receive()
	if err != nil {
		return err
	}
	switch m.GetStart().GetPod() {
	case "panics":
		panic("for the test")
	case "gone":
		return fmt.Errorf("pod gone: %w", pod.ErrNotFound)
	}
	return stream.Send(&poddv1.ExecResponse{})
}

func TestAuditOfStreams(t *testing.T) {
	n := newIssuer(t, 0)
	mux := http.NewServeMux()
	mux.Handle(poddv1connect.NewPodServiceHandler(streams{}, n.Guard.HandlerOptions()...))
	listener, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Guard.Serve(ctx, listener, mux) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := poddv1connect.NewPodServiceClient(n.client(n.credentials(operator)), "https://"+listener.Addr().String(), api.ClientOptions())
	for name, result := range map[string]string{"fine": "ok", "gone": "not_found", "panics": "unknown"} {
		stream := client.Exec(t.Context())
		start := &poddv1.ExecRequest{Request: &poddv1.ExecRequest_Start{Start: &poddv1.ExecStart{Pod: name}}}
		if err := stream.Send(start); err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; {
			_, err = stream.Receive()
		}
		if err := errors.Join(stream.CloseRequest(), stream.CloseResponse()); err != nil && name == "fine" {
			t.Error(err)
		}
		eventually(t, "the end of the call is recorded", func() bool {
			records := n.audited()
			last := records[max(0, len(records)-1):]
			return len(last) == 1 && last[0].Subject == "pod "+name && last[0].Result == result
		})
	}
}

func TestAuditRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	if err := os.WriteFile(path, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := OpenAudit(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	a.size = 1000
	caller := Caller{Identity: operator, Address: "192.0.2.1:1"}
	for i := range 200 {
		a.record(caller, "/x/Y", fmt.Sprint(i), time.Now(), errors.New(strings.Repeat("long ", 1000)))
		a.record(caller, "/x/Y", fmt.Sprint(i), time.Now(), nil)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != auditKept+1 {
		t.Errorf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil || st.Size() > 1000 || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, %v, %v", f, st.Size(), st.Mode(), err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(`"subject":"199","result":"ok"`)) {
		t.Errorf("the last file does not end with the last record: %s, %v", data, err)
	}
}

// TestAuditOfStrangers: who proves nothing can't push the rest out of the file.
func TestAuditOfStrangers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a, err := OpenAudit(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		a.record(Caller{}, "/x/Y", "", time.Now(), pod.ErrUnknownCaller)
	}
	a.record(Caller{Identity: operator}, "/x/Y", "", time.Now(), nil)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(data, []byte("\n")); lines > strangerBurst+10 || !bytes.Contains(data, []byte(`"unrecorded":9`)) {
		t.Errorf("%d records:\n%s", lines, data)
	}
}

// TestAuditFails: what can't be written is told to the log.
func TestAuditFails(t *testing.T) {
	var log bytes.Buffer
	a, err := OpenAudit(filepath.Join(t.TempDir(), "audit.jsonl"), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.file.Close(); err != nil {
		t.Fatal(err)
	}
	a.record(Caller{Identity: trust.Identity{Kind: trust.KindUser, Name: "jane"}}, "/x/Y", "pod alice", time.Now(), nil)
	if !strings.Contains(log.String(), "pod alice") || !strings.Contains(log.String(), "jane") {
		t.Errorf("the log says %q", log.String())
	}
}
