package pagesync

import (
	"bytes"
	"math/bits"
)

// maxRun is the most pages in one frame of data, so that whoever waits for his
// turn on the connection, with an answer to a fault, does not wait long.
const maxRun = 16

// batch makes the frames about pages of one chunk.
type batch struct {
	pid     int
	address uint64
	frames  []Frame
}

// frame adds a frame about n pages from the first on.
func (b *batch) frame(kind Kind, first, n int, payload []byte) {
	b.frames = append(b.frames, Frame{
		Kind: kind, PID: b.pid, Address: b.address + uint64(first)*PageSize, Pages: n, Payload: payload,
	})
}

// add says of each of the given pages, whose content lies one after the other,
// what classify returns; nothing where that is 0. Payloads refer to content.
func (b *batch) add(content []byte, pages uint64, classify func(page int, content []byte) Kind) {
	var kind Kind
	var first, n int
	var begin, end int // of the run in content
	flush := func() {
		if n == 0 || kind == 0 {
			return
		}
		if kind != KindData {
			b.frame(kind, first, n, nil)
			return
		}
		for n > 0 {
			size := min(n, maxRun)
			b.frame(KindData, first, size, content[begin:begin+size*PageSize])
			first, n, begin = first+size, n-size, begin+size*PageSize
		}
	}
	for ; pages != 0; pages &= pages - 1 {
		page := bits.TrailingZeros64(pages)
		k := classify(page, content[end:end+PageSize])
		if n == 0 || k != kind || page != first+n {
			flush()
			kind, first, n, begin = k, page, 0, end
		}
		n++
		end += PageSize
	}
	flush()
}

var zeroPage [PageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:]) }
