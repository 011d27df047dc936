package checkpoint

import (
	"bufio"
	"context"
	"time"
)

// sendAhead sends pages before the freeze, if that was asked for.
func (d *Dump) sendAhead(ctx context.Context) error {
	// Without the library CRIU would dump them all the same.
	if !d.options.Ahead || d.pages == nil || d.options.FreezeCgroup == "" || d.leftOut == nil || d.engine.CanLeaveOut() != nil {
		return nil
	}
	defer context.AfterFunc(ctx, d.interruptPages)()
	begin := time.Now()
	out := bufio.NewWriterSize(d.options.Pages, pageBuffer)
	var err error
	d.ahead, err = sendAhead(ctx, out, d.options.PID, d.options.FreezeCgroup)
	if err == nil {
		err = passError(out.Flush())
	}
	if err == nil {
		d.log.Debug("private pages of files are sent", "bytes", d.ahead.bytes, "duration", time.Since(begin))
	}
	return err
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
	done := make(chan pagesResult, 1)
	stop := context.AfterFunc(ctx, d.interruptPages)
	go func() {
		defer stop()
		// Closing makes CRIU fail, and so notice that we did.
		defer d.pages.Close()
		stats, err := servePages(ctx, d.pages, d.options.Pages, header, d.ahead)
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
