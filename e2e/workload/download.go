package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// DownloadConfig says what to download, and how slowly.
type DownloadConfig struct {
	URL  string
	Dial DialFunc
	// Rate is the number of bytes per second; 0 means as fast as it goes.
	Rate int64
	// SHA256 is the content's digest in hexadecimal; empty means that only
	// the length is checked.
	SHA256 string
}

// Download is an HTTP client that reads one large answer slowly over a single
// connection and checks it.
type Download struct {
	*Silence
	*stopper
	config DownloadConfig

	mu     sync.Mutex
	result DownloadResult
}

// DownloadResult is what a Download has seen so far.
type DownloadResult struct {
	// Bytes have come of Total.
	Bytes int64 `json:"bytes"`
	Total int64 `json:"total"`
	// SHA256 is set when all have come.
	SHA256 string `json:"sha256,omitempty"`
	// LongestSilence is between two reads that brought something. A client
	// that reads slowly has data waiting in its own socket: it may be nothing.
	LongestSilence time.Duration `json:"longestSilence"`
}

// NewDownload returns a client that does nothing before Run.
func NewDownload(c DownloadConfig) *Download {
	return &Download{Silence: newSilence(), stopper: newStopper(), config: c}
}

// Run downloads. It returns nil when everything has come and is right, or
// after Stop.
func (d *Download) Run(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: d.config.Dial.dial,
		// A compressed answer would have another digest and no length.
		DisableCompression: true,
		DisableKeepAlives:  true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.config.URL, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return ctxErr(ctx, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK || response.ContentLength < 0 {
		return fmt.Errorf("downloading %s: status %s, length %d", d.config.URL, response.Status, response.ContentLength)
	}
	d.mu.Lock()
	d.result.Total = response.ContentLength
	d.mu.Unlock()
	if err := d.read(ctx, response.Body); err != nil {
		return ctxErr(ctx, fmt.Errorf("downloading %s: after %d bytes of %d: %w", d.config.URL, d.Result().Bytes, response.ContentLength, err))
	}
	return nil
}

func (d *Download) read(ctx context.Context, body io.Reader) error {
	const step = 20 * time.Millisecond
	size := int64(64 << 10)
	if d.config.Rate > 0 {
		size = max(1, d.config.Rate*int64(step)/int64(time.Second))
	}
	buf, hash := make([]byte, size), sha256.New()
	next := time.Now()
	for !d.stopped() {
		n, err := io.ReadFull(body, buf)
		if n > 0 {
			hash.Write(buf[:n])
			d.mark()
			d.mu.Lock()
			d.result.Bytes += int64(n)
			d.mu.Unlock()
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return d.finish(hex.EncodeToString(hash.Sum(nil)))
		}
		if err != nil {
			return err
		}
		if d.config.Rate > 0 {
			next = next.Add(step)
			if now := time.Now(); next.Before(now.Add(-step)) {
				next = now // after a silence: at the same rate, not faster
			}
			d.pause(ctx, time.Until(next))
		}
	}
	return nil
}

func (d *Download) finish(sum string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.result.SHA256 = sum
	if d.result.Bytes != d.result.Total {
		return io.ErrUnexpectedEOF
	}
	if d.config.SHA256 != "" && d.config.SHA256 != sum {
		return fmt.Errorf("SHA-256 is %s, want %s", sum, d.config.SHA256)
	}
	return nil
}

// Result returns what was seen so far. It may be called at any time.
func (d *Download) Result() DownloadResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.result.LongestSilence = d.Longest()
	return d.result
}
