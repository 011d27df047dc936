package workload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// udpMagic begins every datagram, so that a stray one is noticed.
const udpMagic = 0x706f6464

// udpSize is magic, sequence number and session.
const udpSize = 4 + 8 + 8

// ServeUDP answers every datagram on conn with the same until ctx is done.
func ServeUDP(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receiving: %w", err)
		}
		// An answer that can't be sent is a lost datagram, which UDP allows.
		if _, err := conn.WriteTo(buf[:n], from); err != nil && errors.Is(err, net.ErrClosed) {
			return nil
		}
	}
}

// UDPConfig says whom to send datagrams to, and how often.
type UDPConfig struct {
	Address string
	Dial    DialFunc
	// Interval is between two requests; 0 means 10 ms.
	Interval time.Duration
}

// UDP is a request/response client: it sends numbered datagrams to a server
// that returns them, whether or not answers come.
type UDP struct {
	*Silence
	*stopper
	config UDPConfig

	mu     sync.Mutex
	result UDPResult
}

// UDPResult is what a UDP has seen so far.
type UDPResult struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// Duplicates and Late are answers that came twice or after a later one.
	Duplicates int64 `json:"duplicates"`
	Late       int64 `json:"late"`
	// LongestSilence is between two answers: after a move, the recovery time.
	LongestSilence time.Duration `json:"longestSilence"`
}

// NewUDP returns a client that does nothing before Run.
func NewUDP(c UDPConfig) *UDP {
	if c.Interval == 0 {
		c.Interval = 10 * time.Millisecond
	}
	return &UDP{Silence: newSilence(), stopper: newStopper(), config: c}
}

// Run sends and receives until Stop. Lost datagrams are no error, wrong ones
// are.
func (u *UDP) Run(ctx context.Context) error {
	conn, err := u.config.Dial.dial(ctx, "udp", u.config.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	release := closeOnDone(ctx, conn)
	defer release()
	received := make(chan error, 1)
	session := uint64(time.Now().UnixNano())
	go func() { received <- u.receive(conn, session) }()

	request := make([]byte, udpSize)
	binary.BigEndian.PutUint32(request, udpMagic)
	binary.BigEndian.PutUint64(request[12:], session)
	for n := uint64(1); !u.stopped() && ctx.Err() == nil; n++ {
		binary.BigEndian.PutUint64(request[4:], n)
		// A refused or unreachable server is a lost datagram.
		if _, err := conn.Write(request); err == nil {
			u.mu.Lock()
			u.result.Sent++
			u.mu.Unlock()
		}
		select {
		case err := <-received:
			return ctxErr(ctx, err)
		default:
		}
		u.pause(ctx, u.config.Interval)
	}
	conn.Close()
	return ctxErr(ctx, <-received)
}

// receive counts the answers until conn is closed.
func (u *UDP) receive(conn net.Conn, session uint64) error {
	buf := make([]byte, 64<<10)
	seen, highest := map[uint64]bool{}, uint64(0)
	for {
		n, err := conn.Read(buf)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			continue // an ICMP error: the answer is lost
		}
		if n != udpSize || binary.BigEndian.Uint32(buf) != udpMagic || binary.BigEndian.Uint64(buf[12:]) != session {
			return fmt.Errorf("udp %s: answer % x is to no request of ours", u.config.Address, buf[:min(n, 32)])
		}
		number := binary.BigEndian.Uint64(buf[4:])
		u.mark()
		u.mu.Lock()
		switch {
		case seen[number]:
			u.result.Duplicates++
		default:
			u.result.Received++
			if number < highest {
				u.result.Late++
			}
		}
		u.mu.Unlock()
		seen[number] = true
		highest = max(highest, number)
	}
}

// Result returns what was seen so far. It may be called at any time.
func (u *UDP) Result() UDPResult {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.result.LongestSilence = u.Longest()
	return u.result
}
