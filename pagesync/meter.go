package pagesync

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

// How much has to pass for the rate of a link, and that of the compressor, to be
// renewed, in bytes.
const (
	linkWindow  = 4 << 20
	speedWindow = 64 << 10
)

// rate is bytes by the second, of the last window.
type rate struct {
	mu    sync.Mutex
	bytes int64
	time  time.Duration
	rate  atomic.Int64
}

func (r *rate) add(bytes int, d time.Duration, window int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += int64(bytes)
	r.time += d
	if r.bytes >= window {
		r.rate.Store(int64(float64(r.bytes) / max(r.time, time.Microsecond).Seconds()))
		r.bytes, r.time = 0, 0
	}
}

// get returns 0 while nothing is known.
func (r *rate) get() int64 { return r.rate.Load() }

// meter measures how fast a connection takes what is written: as fast as it
// is copied, or as fast as the link is once buffers are full.
type meter struct {
	w io.Writer
	rate
}

func (m *meter) Write(b []byte) (int, error) {
	begin := time.Now()
	n, err := m.w.Write(b)
	m.add(n, time.Since(begin), linkWindow)
	return n, err
}

// compressor compresses pages where the link is slower than it.
type compressor struct {
	encoder *zstd.Encoder
	input   rate
	// Both of the last windows: what went in and what came out.
	in, out atomic.Int64
	tries   atomic.Int64
}

func newCompressor() (*compressor, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(chunkSize), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return &compressor{encoder: e}, nil
}

// probeEvery is how often compression is tried to see what it would give, while
// the link is too fast for it or the content does not shrink.
const probeEvery = 64

// worth reports whether to compress what goes to a link of the given rate.
func (c *compressor) worth(link int64) bool {
	if link == 0 {
		return false
	}
	in, out := c.in.Load(), c.out.Load()
	speed := c.input.get()
	if speed > link && out < in-in/8 {
		return true
	}
	// It need not be tried for a link that is faster than any compressor.
	return link < 2<<30 && (speed == 0 || c.tries.Add(1)%probeEvery == 0)
}

// compress appends b compressed to dst. ok is false if that is not shorter.
func (c *compressor) compress(dst, b []byte) (compressed []byte, ok bool) {
	begin := time.Now()
	compressed = c.encoder.EncodeAll(b, dst)
	c.input.add(len(b), time.Since(begin), speedWindow)
	// A sliding sum: half of the past counts as much as the present.
	c.in.Store(c.in.Load()/2 + int64(len(b)))
	c.out.Store(c.out.Load()/2 + int64(len(compressed)))
	return compressed, len(compressed) < len(b)
}
