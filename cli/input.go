package cli

import (
	"fmt"
	"sync"
)

// Limits of an inputQueue, in bytes: how much is read ahead of the stream, how
// much goes into one message, and how much that was sent is kept to be sent
// again. The last is more than can be under way: HTTP/2 windows of podctl's
// podd and of the pod's, and the session's socket buffer.
const (
	inputAhead = 256 << 10
	inputChunk = 32 << 10
	inputKept  = 8 << 20
)

// inputQueue holds standard input on its way to a command. One goroutine puts
// in what it reads; the sender of the current stream takes it out. When the pod
// moves, the next stream begins where the command really got to.
type inputQueue struct {
	mu      sync.Mutex
	changed sync.Cond
	// data holds the input from position start on; next is the position of the
	// first byte not yet given to a sender, begun the one the current stream
	// began at.
	data               []byte
	start, next, begun uint64
	ended              bool // no more input will come
	stream             int  // numbers the streams; a sender of an earlier one stops
	closed             bool
}

func newInputQueue() *inputQueue {
	q := &inputQueue{}
	q.changed.L = &q.mu
	return q
}

// put adds input, waiting while enough is ahead. It is false when nobody wants
// any more.
func (q *inputQueue) put(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && q.start+uint64(len(q.data))-q.next > inputAhead {
		q.changed.Wait()
	}
	q.data = append(q.data, b...)
	q.changed.Broadcast()
	return !q.closed
}

// end says that all input has been put in.
func (q *inputQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.changed.Broadcast()
}

// close ends all waiting.
func (q *inputQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Broadcast()
}

// begin starts a new stream; the sender of the one before stops.
func (q *inputQueue) begin() (stream int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stream++
	q.begun = q.next
	q.changed.Broadcast()
	return q.stream
}

// halt makes the current stream's sender stop.
func (q *inputQueue) halt() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stream++
	q.changed.Broadcast()
}

// take waits for the next bytes for a stream. end is true when there are none
// left, ok false when the stream is no longer the current one.
func (q *inputQueue) take(stream int) (chunk []byte, end, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed || q.stream != stream {
			return nil, false, false
		}
		if waiting := q.data[q.next-q.start:]; len(waiting) > 0 {
			chunk = append([]byte(nil), waiting[:min(len(waiting), inputChunk)]...)
			q.next += uint64(len(chunk))
			q.forget()
			q.changed.Broadcast()
			return chunk, false, true
		}
		if q.ended {
			return nil, true, true
		}
		q.changed.Wait()
	}
}

// forget drops what was sent so long ago that it has certainly arrived.
func (q *inputQueue) forget() {
	sent := int(q.next - q.start)
	if sent < 2*inputKept { // not at every byte
		return
	}
	drop := sent - inputKept
	q.data = append([]byte(nil), q.data[drop:]...)
	q.start += uint64(drop)
}

// rewind goes back to where the command got to: accepted bytes of the last
// stream. The next stream begins there.
func (q *inputQueue) rewind(accepted uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	position := q.begun + accepted
	if position > q.next {
		return fmt.Errorf("podd says that %d bytes of input arrived, %d were sent", accepted, q.next-q.begun)
	}
	if position < q.start {
		return fmt.Errorf("%d bytes of input were lost in the move", q.start-position)
	}
	q.next = position
	return nil
}
