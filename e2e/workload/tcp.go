package workload

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The protocol of TCP: the client sends an 8-byte seed and then the
// pseudo-random stream of it; the server sends the stream of seed+1 at the same
// rate, until the client closes its half. The server ends its own with a
// trailer: magic and the number of bytes it received. Both check every byte.
const (
	tcpMagic   = "podd-end"
	tcpTrailer = len(tcpMagic) + 8
	// tcpStep is how often a side sends, slowStep if it has less than slowRate
	// bytes a second to send.
	tcpStep  = 5 * time.Millisecond
	slowStep = 100 * time.Millisecond
	slowRate = 64 << 10
)

// stream is the pseudo-random stream of a seed.
func stream(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// checker compares what comes with a stream, except for the last hold bytes,
// which it keeps.
type checker struct {
	want  *rand.ChaCha8
	hold  int
	tail  []byte
	bytes int64
	buf   []byte
}

func (c *checker) write(p []byte) error {
	c.tail = append(c.tail, p...)
	n := len(c.tail) - c.hold
	if n <= 0 {
		return nil
	}
	if cap(c.buf) < n {
		c.buf = make([]byte, n)
	}
	want := c.buf[:n]
	c.want.Read(want) // never fails
	if !bytes.Equal(c.tail[:n], want) {
		for i := range want {
			if c.tail[i] != want[i] {
				return fmt.Errorf("byte %d of the stream is wrong: %#x, want %#x", c.bytes+int64(i), c.tail[i], want[i])
			}
		}
	}
	c.bytes += int64(n)
	c.tail = append(c.tail[:0], c.tail[n:]...)
	return nil
}

// send writes the stream to conn at rate bytes per second until done reports
// true or an error.
func send(conn net.Conn, data *rand.ChaCha8, rate int64, done func() bool, sent *atomic.Int64) error {
	step := tcpStep
	if rate < slowRate {
		step = slowStep
	}
	size := max(1, rate*int64(step)/int64(time.Second))
	buf := make([]byte, size)
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for !done() {
		data.Read(buf)
		if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := conn.Write(buf)
		sent.Add(int64(n))
		if err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		<-ticker.C
	}
	return nil
}

// receive passes what comes to c until the end of the stream.
func receive(conn net.Conn, c *checker, mark func()) error {
	buf := make([]byte, 64<<10)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if n > 0 {
			mark()
			if err := c.write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
	}
}

// ServeTCP serves clients of type TCP on l until ctx is done. rate is the
// number of bytes per second to each. A client whose stream is wrong is reset
// and reported to failed.
func ServeTCP(ctx context.Context, l net.Listener, rate int64, failed func(error)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting: %w", err)
		}
		wg.Go(func() {
			if err := serveTCP(ctx, conn, rate); err != nil && ctx.Err() == nil {
				failed(fmt.Errorf("client %s: %w", conn.RemoteAddr(), err))
			}
		})
	}
}

func serveTCP(ctx context.Context, conn net.Conn, rate int64) error {
	release := closeOnDone(ctx, conn)
	defer release()
	defer conn.Close()
	var header [8]byte
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return fmt.Errorf("receiving seed: %w", err)
	}
	seed := binary.BigEndian.Uint64(header[:])
	in := &checker{want: stream(seed)}
	var sent atomic.Int64
	var ended atomic.Bool
	sending := make(chan error, 1)
	go func() { sending <- send(conn, stream(seed+1), rate, ended.Load, &sent) }()
	err := receive(conn, in, func() {})
	ended.Store(true)
	if err != nil {
		reset(conn) // also ends the sender
		return errors.Join(err, <-sending)
	}
	if err := <-sending; err != nil {
		return err
	}
	_, err = conn.Write(binary.BigEndian.AppendUint64([]byte(tcpMagic), uint64(in.bytes)))
	return err
}

// reset closes conn so that the other end notices that something is wrong.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) // an error means that it is closed already
	}
	conn.Close()
}

// TCPConfig says where to stream to, and how fast.
type TCPConfig struct {
	Address string
	Dial    DialFunc
	// Rate is the number of bytes per second to send; 0 means 1 MiB.
	Rate int64
	// Seed of the streams; clients at the same time should have different ones.
	Seed uint64
}

// TCP is a client of ServeTCP: a stream each way, of which every byte is
// checked.
type TCP struct {
	*Silence
	*stopper
	config TCPConfig
	sent   atomic.Int64
	got    atomic.Int64
}

// TCPResult is what a TCP has seen so far.
type TCPResult struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// LongestSilence is between two reads that brought something.
	LongestSilence time.Duration `json:"longestSilence"`
}

// NewTCP returns a client that does nothing before Run.
func NewTCP(c TCPConfig) *TCP {
	if c.Rate == 0 {
		c.Rate = 1 << 20
	}
	return &TCP{Silence: newSilence(), stopper: newStopper(), config: c}
}

// Run streams until Stop and then checks that the server received all that was
// sent.
func (t *TCP) Run(ctx context.Context) error {
	conn, err := t.config.Dial.dial(ctx, "tcp", t.config.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	release := closeOnDone(ctx, conn)
	defer release()
	if err := t.run(ctx, conn); err != nil {
		return ctxErr(ctx, fmt.Errorf("stream with %s: %w", t.config.Address, err))
	}
	return nil
}

func (t *TCP) run(ctx context.Context, conn net.Conn) error {
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, t.config.Seed)); err != nil {
		return err
	}
	in := &checker{want: stream(t.config.Seed + 1), hold: tcpTrailer}
	receiving := make(chan error, 1)
	go func() {
		err := receive(conn, in, func() { t.mark(); t.got.Store(in.bytes) })
		if err != nil {
			conn.Close() // ends the sender
		}
		receiving <- err
	}()
	sendErr := send(conn, stream(t.config.Seed), t.config.Rate, t.stopped, &t.sent)
	if sendErr == nil {
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			sendErr = half.CloseWrite()
		} else {
			sendErr = errors.New("the connection can't be closed one way")
		}
	}
	if sendErr != nil {
		conn.Close()
	}
	if err := <-receiving; err != nil {
		return err
	}
	if sendErr != nil {
		return sendErr
	}
	t.got.Store(in.bytes)
	if len(in.tail) != tcpTrailer || string(in.tail[:len(tcpMagic)]) != tcpMagic {
		return fmt.Errorf("the stream ends without its trailer: %w", io.ErrUnexpectedEOF)
	}
	if n := int64(binary.BigEndian.Uint64(in.tail[len(tcpMagic):])); n != t.sent.Load() {
		return fmt.Errorf("the server received %d bytes of %d", n, t.sent.Load())
	}
	return nil
}

// Result returns what was seen so far. It may be called at any time.
func (t *TCP) Result() TCPResult {
	return TCPResult{Sent: t.sent.Load(), Received: t.got.Load(), LongestSilence: t.Longest()}
}
