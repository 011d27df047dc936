package checkpoint

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"podd/sharedmem"
)

// SendAhead sends what DumpOptions.Shared is about while the pod runs, which may take as
// long as the connection does. Run does it if nobody has. After an error, which ctx may
// cause, only Abort is possible.
func (d *Dump) SendAhead(ctx context.Context) (sharedmem.PassStats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != dumpPrepared {
		return sharedmem.PassStats{}, fmt.Errorf("sending shared memory ahead: %w", ErrState)
	}
	if d.shared == nil || d.shared.sent || d.engine.CanLeaveOut() != nil {
		return sharedmem.PassStats{}, nil
	}
	d.shared.sent = true
	return d.sendShared(ctx)
}

func (d *Dump) sendShared(ctx context.Context) (sharedmem.PassStats, error) {
	defer context.AfterFunc(ctx, d.interruptPages)()
	stats, err := d.shared.source.Send(ctx, d.out)
	if err == nil {
		err = d.out.flush()
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		d.log.Debug("shared memory is sent", "segments", stats.Segments, "bytes", stats.Scanned, "changed", stats.Changed, "duration", stats.Duration)
	}
	return stats, err
}

// sendAhead sends pages before the freeze, if that was asked for and not done.
func (d *Dump) sendAhead(ctx context.Context) error {
	// Without the library CRIU would dump them all the same.
	if d.pages == nil || d.options.FreezeCgroup == "" || d.leftOut == nil || d.engine.CanLeaveOut() != nil {
		return nil
	}
	if d.shared != nil && !d.shared.sent {
		d.shared.sent = true
		if _, err := d.sendShared(ctx); err != nil {
			return err
		}
	}
	if !d.options.Ahead {
		return nil
	}
	defer context.AfterFunc(ctx, d.interruptPages)()
	begin := time.Now()
	var err error
	d.ahead, err = sendAhead(ctx, d.out, d.options.PID, d.options.FreezeCgroup)
	if err == nil {
		err = d.out.flush()
	}
	if err == nil {
		d.log.Debug("private pages of files are sent", "bytes", d.ahead.bytes, "duration", time.Since(begin))
	}
	return err
}

// startImages begins to send images early, if that was asked for. Without, all are sent at the end.
func (d *Dump) startImages() {
	if !d.options.EarlyImages || d.out == nil {
		return
	}
	var err error
	if d.early, err = sendEarly(d.options.ImagesDir, d.out); err != nil {
		d.log.Warn("images can't be sent while others are written", "error", err)
	}
}

// SendImages writes the images to w that Run has not sent in the page stream, for
// ImageStore.Receive. It is called at the hold. The result counts all.
func (d *Dump) SendImages(w io.Writer) (ImageStats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != dumpHeld {
		return ImageStats{}, fmt.Errorf("sending images: %w", ErrState)
	}
	root, err := os.OpenRoot(d.options.ImagesDir)
	if err != nil {
		return ImageStats{}, fmt.Errorf("sending images: %w", err)
	}
	defer root.Close()
	var sent map[string]int64
	if d.early != nil {
		if sent, err = d.early.current(); err != nil {
			return ImageStats{}, fmt.Errorf("sending images: %w", err)
		}
	}
	stats, err := sendImageFrames(w, root, sent)
	d.log.Debug("images are sent", "early", len(sent), "all", stats.Files)
	if err != nil {
		return stats, fmt.Errorf("sending images: %w", err)
	}
	return stats, nil
}

type pagesResult struct {
	stats PageStats
	err   error
}

// startPages serves CRIU's page socket until the end of the stream. The
// result comes once; nil means that pages are not streamed.
func (d *Dump) startPages(ctx context.Context) chan pagesResult {
	if d.pages == nil {
		return nil
	}
	header := headerSize
	if d.engine.version < 40200 {
		header = headerSizeOld
	}
	early, shared := d.early, d.shared
	complete := func(stats *PageStats) error {
		if early != nil {
			if err := early.end(); err != nil {
				return err
			}
		}
		if shared != nil {
			return shared.complete(d.out, stats)
		}
		return nil
	}
	opens := d.leftOut != nil && d.leftOut.answerOpens(firstWorkerFile, firstWorkerFile+1)
	d.pages.rung = opens
	done := make(chan pagesResult, 1)
	stop := context.AfterFunc(ctx, d.interruptPages)
	go func() {
		defer stop()
		// Closing makes CRIU fail, and so notice that we did.
		defer d.pages.Close()
		server := pageServer{criu: d.pages, out: d.out, header: header, ahead: d.ahead, opens: opens, complete: complete}
		stats, err := server.run(ctx)
		done <- pagesResult{stats, err}
	}()
	return done
}

// interruptPages makes writing the page stream fail, if the writer can do that.
func (d *Dump) interruptPages() {
	if w, ok := d.options.Pages.(interface{ SetWriteDeadline(time.Time) error }); ok {
		if err := w.SetWriteDeadline(time.Unix(1, 0)); err != nil {
			d.log.Warn("interrupting the page stream failed", "error", err)
		}
	}
}
