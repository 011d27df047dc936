package podd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"podd/pod"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestStageClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports []progress
		c := newStageClock(discard(), func(p progress) { reports = append(reports, p) })
		c.opened("4f1c09")
		c.begin(pod.StagePresync)
		time.Sleep(2 * time.Second)
		if n, err := io.WriteString(c.count(io.Discard), "seven b"); n != 7 || err != nil {
			t.Fatal(n, err)
		}
		c.begin(pod.StageHold)
		if got := c.stage(); got != pod.StageHold {
			t.Errorf("the stage is %s", got)
		}
		time.Sleep(time.Second)
		want := []pod.StageTime{
			{Stage: pod.StagePresync, Duration: 2 * time.Second, Bytes: 7},
			{Stage: pod.StageHold, Duration: time.Second},
		}
		got := c.finish()
		if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("got %v, want %v", got, want)
		}
		if again := c.finish(); len(again) != len(want) {
			t.Errorf("finishing twice: %v", again)
		}
		wantReports := []progress{
			{move: "4f1c09"},
			{move: "4f1c09", stage: pod.StagePresync},
			{move: "4f1c09", stage: pod.StageHold, elapsed: 2 * time.Second},
		}
		if !slices.Equal(reports, wantReports) {
			t.Errorf("reported %+v, want %+v", reports, wantReports)
		}
	})
}

// TestStageClockWatch checks that a long stage is heard of while it lasts, and
// one that sends nothing is not.
func TestStageClockWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var reports []progress
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(reports)
		}
		c := newStageClock(discard(), func(p progress) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, p)
		})
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { c.watch(ctx) })
		c.begin(pod.StageReserve)
		time.Sleep(10 * progressInterval)
		synctest.Wait()
		if n := count(); n != 1 {
			t.Errorf("%d reports of a stage that sends nothing, want 1", n)
		}
		c.begin(pod.StagePresync)
		if _, err := io.WriteString(c.count(io.Discard), "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*progressInterval + progressInterval/2)
		synctest.Wait()
		if n := count(); n != 5 {
			t.Errorf("%d reports, want 5", n)
		}
		if last := reports[len(reports)-1]; last.bytes != 1 || last.stage != pod.StagePresync {
			t.Errorf("the last report is %+v", last)
		}
		cancel()
		done.Wait()
	})
}

// TestCountingWriterDeadline checks that counting does not hide how a writer
// is interrupted.
func TestCountingWriterDeadline(t *testing.T) {
	c := newStageClock(discard(), nil)
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	w := c.count(near)
	if err := w.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want that the deadline has passed", err)
	}
	plain := c.count(new(bytes.Buffer))
	if err := plain.(interface{ SetWriteDeadline(time.Time) error }).SetWriteDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("a writer without deadlines: %v", err)
	}
}
