package vncclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// ErrClosed is the error of a client that was closed.
var ErrClosed = errors.New("the viewer is closed")

// Client is a viewer that is connected. It is safe for concurrent use.
type Client struct {
	conn net.Conn
	name string
	done chan struct{} // closed when the receiver has ended

	sending sync.Mutex // one message at a time

	mu      sync.Mutex
	picture *image.RGBA // as of the last whole update
	stats   Stats
	// quiet is since when nothing has come; changed is closed when something does.
	quiet   time.Time
	changed chan struct{}
	err     error
}

// Stats are what has come since the connection was made, and the longest
// silence since ResetSilence.
type Stats struct {
	// Updates is the number of FramebufferUpdate messages, each an answer to a
	// request of the client's; Rectangles is how many changed parts of the
	// picture they had, Bytes all that was received.
	Updates, Rectangles, Bytes int64
	// Silence is the longest time between two updates, the one that lasts
	// included.
	Silence time.Duration
}

// Connect does the handshake over a connection, which is the client's from then
// on, and asks for the picture. It returns when the first picture is there. ctx
// bounds only that.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), changed: make(chan struct{}), quiet: time.Now()}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := newReader(conn)
	size, name, err := r.handshake(conn)
	if err == nil {
		c.name = name
		r.screen, c.picture = image.NewRGBA(image.Rectangle{Max: size}), image.NewRGBA(image.Rectangle{Max: size})
		err = c.begin()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to the VNC server: %w", err)
	}
	go c.receive(r)
	if err := c.Wait(ctx, func(s Stats) bool { return s.Updates > 0 }); err != nil {
		c.Close()
		return nil, fmt.Errorf("waiting for the first picture: %w", err)
	}
	c.ResetSilence()
	return c, nil
}

// begin says what the client wants, and asks for all of the picture.
func (c *Client) begin() error {
	message := append([]byte{setPixelFormat, 0, 0, 0}, pixelFormat[:]...)
	encodings := []int32{encodingCopyRect, encodingRaw, encodingDesktopSize}
	message = append(message, setEncodings, 0, 0, byte(len(encodings)))
	for _, e := range encodings {
		message = binary.BigEndian.AppendUint32(message, uint32(e))
	}
	if err := c.send(message); err != nil {
		return err
	}
	return c.request(c.picture.Rect.Size(), false)
}

// request asks for the whole picture, or for what changes in it as soon as
// something does.
func (c *Client) request(size image.Point, incremental bool) error {
	message := make([]byte, 10)
	message[0] = framebufferUpdateRequest
	if incremental {
		message[1] = 1
	}
	binary.BigEndian.PutUint16(message[6:], uint16(size.X))
	binary.BigEndian.PutUint16(message[8:], uint16(size.Y))
	return c.send(message)
}

func (c *Client) send(message []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := c.conn.Write(message)
	return err
}

// receive takes in what the server sends until the connection ends.
func (c *Client) receive(r *reader) {
	defer close(c.done)
	err := c.serve(r)
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("the connection to the VNC server ended: %w", err)
	}
	close(c.changed)
}

func (c *Client) serve(r *reader) error {
	for {
		switch message := r.u8(); {
		case r.err != nil:
			return r.err
		case message == framebufferUpdate:
			if err := c.update(r); err != nil {
				return err
			}
		case message == setColourMapEntries:
			r.skip(3)
			const entry = 6 // bytes
			r.skip(r.u16() * entry)
		case message == bell:
		case message == serverCutText:
			r.skip(3)
			r.text()
		default:
			return fmt.Errorf("the server sends message %d, which RFB 3.8 does not have", message)
		}
	}
}

// update takes one update in and asks for the next, only then: so a slow viewer
// gets fewer, and how many come says that both ends and the way are alive. Who waits
// for the update goes on after that, so what it sends comes later.
func (c *Client) update(r *reader) error {
	damage, rectangles, err := r.update()
	if err != nil {
		return err
	}
	now := time.Now()
	err = c.request(r.screen.Rect.Size(), true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.picture.Rect != r.screen.Rect {
		c.picture, damage = image.NewRGBA(r.screen.Rect), r.screen.Rect
	}
	draw.Draw(c.picture, damage, r.screen, damage.Min, draw.Src)
	c.stats = Stats{
		Updates: c.stats.Updates + 1, Rectangles: c.stats.Rectangles + int64(rectangles), Bytes: r.received(),
		Silence: max(c.stats.Silence, now.Sub(c.quiet)),
	}
	c.quiet = now
	close(c.changed)
	c.changed = make(chan struct{})
	return err
}

// Name is the desktop's name.
func (c *Client) Name() string { return c.name }

// Conn is the connection, for its addresses.
func (c *Client) Conn() net.Conn { return c.conn }

// Err is why the connection ended, nil while it lasts.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for the receiver.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.err == nil {
		c.err = ErrClosed
	}
	c.mu.Unlock()
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil // the receiver has closed it
	}
	return err
}

// Stats returns what has come so far.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.statsLocked()
}

func (c *Client) statsLocked() Stats {
	stats := c.stats
	stats.Silence = max(stats.Silence, time.Since(c.quiet))
	return stats
}

// ResetSilence begins a new measurement of the longest silence, now.
func (c *Client) ResetSilence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Silence, c.quiet = 0, time.Now()
}

// Wait returns when the condition, which is asked after every update, holds; or
// with the error of the connection or of ctx.
func (c *Client) Wait(ctx context.Context, condition func(Stats) bool) error {
	for {
		c.mu.Lock()
		stats, changed, err := c.statsLocked(), c.changed, c.err
		c.mu.Unlock()
		if condition(stats) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WaitUpdates returns when n more updates have come.
func (c *Client) WaitUpdates(ctx context.Context, n int64) error {
	want := c.Stats().Updates + n
	return c.Wait(ctx, func(s Stats) bool { return s.Updates >= want })
}

// Picture returns a copy of the picture as it is now.
func (c *Client) Picture() *image.RGBA {
	c.mu.Lock()
	defer c.mu.Unlock()
	picture := *c.picture
	picture.Pix = slices.Clone(picture.Pix)
	return &picture
}

// SavePNG writes the picture as it is now to a file.
func (c *Client) SavePNG(path string) error {
	var b bytes.Buffer
	if err := png.Encode(&b, c.Picture()); err != nil {
		return fmt.Errorf("encoding the picture: %w", err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("saving the picture: %w", err)
	}
	return nil
}
