package vncclient

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"image"
	"io"
)

// Numbers of RFC 6143: security types (7.1.2), client messages (7.5), server
// messages (7.6), encodings (7.7).
const (
	securityNone = 1

	setPixelFormat           = 0
	setEncodings             = 2
	framebufferUpdateRequest = 3
	keyEvent                 = 4
	pointerEvent             = 5

	framebufferUpdate   = 0
	setColourMapEntries = 1
	bell                = 2
	serverCutText       = 3

	encodingRaw         = 0
	encodingCopyRect    = 1
	encodingDesktopSize = -223
)

const (
	protocolVersion = "RFB 003.008\n"
	bytesPerPixel   = 4
	// maxSide and maxText bound what a peer can make the client allocate.
	maxSide = 8192
	maxText = 1 << 20
)

// pixelFormat is the one the client asks for (7.4): 32 bits a pixel, little
// endian, true colour, eight bits each, and red in the lowest byte, so that a
// pixel's bytes are those of an image.RGBA but for the fourth, which is unused.
var pixelFormat = [16]byte{
	32, 24, 0, 1, // bits per pixel, depth, big endian, true colour
	0, 255, 0, 255, 0, 255, // the highest red, green, blue
	0, 8, 16, // how far they are shifted
}

// reader reads big-endian integers and remembers the first error, after which
// it gives zeros.
type reader struct {
	*bufio.Reader
	err error
	// conn counts what the buffer took from the connection.
	conn *countingReader
	// screen is what the updates so far have drawn, perhaps half of one.
	screen *image.RGBA
}

type countingReader struct {
	io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

func newReader(conn io.Reader) *reader {
	counted := &countingReader{Reader: conn}
	return &reader{Reader: bufio.NewReaderSize(counted, 64<<10), conn: counted}
}

// received is how many bytes were read.
func (r *reader) received() int64 { return r.conn.n - int64(r.Buffered()) }

func (r *reader) full(p []byte) {
	if r.err == nil {
		_, r.err = io.ReadFull(r.Reader, p)
	}
	if r.err != nil {
		clear(p)
	}
}

func (r *reader) skip(n int) {
	if r.err == nil {
		_, r.err = r.Discard(n)
	}
}

func (r *reader) u8() int {
	var b [1]byte
	r.full(b[:])
	return int(b[0])
}

func (r *reader) u16() int {
	var b [2]byte
	r.full(b[:])
	return int(binary.BigEndian.Uint16(b[:]))
}

func (r *reader) u32() uint32 {
	var b [4]byte
	r.full(b[:])
	return binary.BigEndian.Uint32(b[:])
}

// text reads a length and as many bytes.
func (r *reader) text() string {
	n := r.u32()
	if r.err == nil && n > maxText {
		r.err = fmt.Errorf("the server sends a text of %d bytes", n)
	}
	if r.err != nil {
		return ""
	}
	b := make([]byte, n)
	r.full(b)
	return string(b)
}

// handshake goes through 7.1 to 7.3, as one viewer among others, and returns
// the size and name of the desktop.
func (r *reader) handshake(w io.Writer) (size image.Point, name string, err error) {
	version := make([]byte, len(protocolVersion))
	r.full(version)
	if r.err == nil && string(version[:4]) != protocolVersion[:4] {
		return size, "", fmt.Errorf("this is no VNC server: it says %q", version)
	}
	if r.err == nil && string(version) < protocolVersion {
		return size, "", fmt.Errorf("the server speaks %q; want 3.8 or later", version)
	}
	r.write(w, []byte(protocolVersion))
	types := make([]byte, r.u8())
	if r.err == nil && len(types) == 0 {
		return size, "", fmt.Errorf("the server refuses: %s", r.text())
	}
	r.full(types)
	found := false
	for _, t := range types {
		found = found || t == securityNone
	}
	if r.err == nil && !found {
		return size, "", fmt.Errorf("the server wants authentication (types %v)", types)
	}
	r.write(w, []byte{securityNone})
	if result := r.u32(); r.err == nil && result != 0 {
		return size, "", fmt.Errorf("the server refuses: %s", r.text())
	}
	const shared = 1
	r.write(w, []byte{shared})
	size = image.Pt(r.u16(), r.u16())
	r.skip(len(pixelFormat)) // the server's own
	name = r.text()
	if r.err == nil {
		r.err = checkSize(size)
	}
	return size, name, r.err
}

func (r *reader) write(w io.Writer, p []byte) {
	if r.err == nil {
		_, r.err = w.Write(p)
	}
}

func checkSize(size image.Point) error {
	if size.X < 1 || size.Y < 1 || size.X > maxSide || size.Y > maxSide {
		return fmt.Errorf("the server's desktop is %d by %d pixels", size.X, size.Y)
	}
	return nil
}

// update draws the rectangles of a FramebufferUpdate (7.6.1) on the screen and
// returns the area that has them all, and their number.
func (r *reader) update() (damage image.Rectangle, rectangles int, err error) {
	r.skip(1)
	rectangles = r.u16()
	for range rectangles {
		x, y, w, h := r.u16(), r.u16(), r.u16(), r.u16()
		encoding := int32(r.u32())
		if r.err != nil {
			break
		}
		if encoding == encodingDesktopSize {
			size := image.Pt(w, h)
			if err := checkSize(size); err != nil {
				return damage, rectangles, err
			}
			r.screen = image.NewRGBA(image.Rectangle{Max: size})
			continue
		}
		area := image.Rect(x, y, x+w, y+h)
		if !area.In(r.screen.Rect) {
			return damage, rectangles, fmt.Errorf("the server draws at %v on a screen of %v", area, r.screen.Rect)
		}
		switch encoding {
		case encodingRaw:
			r.raw(area)
		case encodingCopyRect:
			if err := r.copyRect(area, image.Pt(r.u16(), r.u16())); err != nil {
				return damage, rectangles, err
			}
		default:
			return damage, rectangles, fmt.Errorf("the server sends encoding %d, which was not asked for", encoding)
		}
		damage = damage.Union(area)
	}
	return damage, rectangles, r.err
}

func (r *reader) raw(area image.Rectangle) {
	for y := area.Min.Y; y < area.Max.Y; y++ {
		start := r.screen.PixOffset(area.Min.X, y)
		row := r.screen.Pix[start : start+area.Dx()*bytesPerPixel]
		r.full(row)
		for i := bytesPerPixel - 1; i < len(row); i += bytesPerPixel {
			row[i] = 0xff // opaque
		}
	}
}

// copyRect copies a part of the screen to another, which may overlap.
func (r *reader) copyRect(area image.Rectangle, from image.Point) error {
	if !area.Sub(area.Min).Add(from).In(r.screen.Rect) {
		return fmt.Errorf("the server copies from %v to %v on a screen of %v", from, area, r.screen.Rect)
	}
	n := area.Dx() * bytesPerPixel
	for i := range area.Dy() {
		y := i
		if area.Min.Y > from.Y { // downwards: the last row first
			y = area.Dy() - 1 - i
		}
		to, source := r.screen.PixOffset(area.Min.X, area.Min.Y+y), r.screen.PixOffset(from.X, from.Y+y)
		copy(r.screen.Pix[to:to+n], r.screen.Pix[source:source+n]) // copy minds an overlap
	}
	return nil
}
