package directory

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"podd/pod"
)

// TestLogQuotesNoRecords: not even at level debug does the log hold what a pod's
// environment does.
func TestLogQuotesNoRecords(t *testing.T) {
	var log lockedBuffer
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", Unsynced: true,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	d := open(t, e)
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	r, err := d.RegisterHost(t.Context(), host("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Abandon)
	s := spec("web")
	const secret = "correct-horse-battery"
	s.Env = []string{"PASSWORD=" + secret}
	if _, err := d.CreatePod(t.Context(), s, "a"); err != nil {
		t.Fatal(err)
	}
	if err := d.UpdatePod(t.Context(), "web", func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		t.Fatal(err)
	}
	switch text := log.String(); {
	case text == "":
		t.Error("etcd has logged nothing at all")
	case strings.Contains(text, secret):
		t.Errorf("the log quotes the environment:\n%s", text)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
