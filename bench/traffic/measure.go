package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much is written or read at a time.
const chunk = 256 << 10

// Send sends on one connection for a while and returns how many bits a second
// the server has received.
func (c *Client) Send(d time.Duration) (rate float64, err error) {
	err = c.Within(func() error {
		s, err := c.dial(unix.SOCK_STREAM, sinkPort)
		if err != nil {
			return err
		}
		defer s.close()
		data := make([]byte, chunk)
		begin := time.Now()
		for time.Since(begin) < d {
			if err := s.write(data); err != nil {
				return err
			}
		}
		if err := unix.Shutdown(int(s), unix.SHUT_WR); err != nil {
			return fmt.Errorf("ending the stream: %w", err)
		}
		if err := s.read(data[:8]); err != nil {
			return err
		}
		rate = float64(binary.BigEndian.Uint64(data)) * 8 / time.Since(begin).Seconds()
		return nil
	})
	return rate, err
}

// Receive receives on one connection for a while and returns how many bits a
// second came.
func (c *Client) Receive(d time.Duration) (rate float64, err error) {
	err = c.Within(func() error {
		s, err := c.dial(unix.SOCK_STREAM, sourcePort)
		if err != nil {
			return err
		}
		defer s.close()
		data := make([]byte, chunk)
		total, begin := 0, time.Now()
		for time.Since(begin) < d {
			n, err := retry(func() (int, error) { return unix.Read(int(s), data) })
			if err != nil {
				return fmt.Errorf("receiving: %w", err)
			}
			total += n
		}
		rate = float64(total) * 8 / time.Since(begin).Seconds()
		return nil
	})
	return rate, err
}

// RoundTrips sends so many requests of 64 bytes on one connection, each after
// the answer to the one before, and returns how long each answer took.
func (c *Client) RoundTrips(count int) (took []time.Duration, err error) {
	err = c.Within(func() error {
		s, err := c.dial(unix.SOCK_STREAM, echoPort)
		if err != nil {
			return err
		}
		defer s.close()
		if err := unix.SetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return fmt.Errorf("setting TCP_NODELAY: %w", err)
		}
		message := make([]byte, 64)
		const warm = 20 // the first ones, not counted
		for i := range count + warm {
			begin := time.Now()
			if err := s.write(message); err != nil {
				return err
			}
			if err := s.read(message); err != nil {
				return err
			}
			if i >= warm {
				took = append(took, time.Since(begin))
			}
		}
		return nil
	})
	return took, err
}

// Connects opens connections for a while, from some threads one after the
// other, has a byte answered on each and resets it; it returns how many a
// second there were.
func (c *Client) Connects(threads int, d time.Duration) (rate float64, err error) {
	var wg sync.WaitGroup
	counts, failures := make([]int, threads), make([]error, threads)
	begin := time.Now()
	for i := range threads {
		wg.Go(func() {
			failures[i] = c.Within(func() error {
				for {
					if err := c.connectOnce(); err != nil {
						return err
					}
					counts[i]++
					if time.Since(begin) >= d {
						return nil
					}
				}
			})
		})
	}
	wg.Wait()
	elapsed, total := time.Since(begin).Seconds(), 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / elapsed, errors.Join(failures...)
}

// Answer has the server answer a byte on a connection of its own.
func (c *Client) Answer() error { return c.Within(c.connectOnce) }

func (c *Client) connectOnce() error {
	s, err := c.dial(unix.SOCK_STREAM, answerPort)
	if err != nil {
		return err
	}
	defer s.close()
	// A reset leaves nothing behind: after 28,000 connections there would be
	// no port left that does not wait for late packets.
	if err := unix.SetsockoptLinger(int(s), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("setting SO_LINGER: %w", err)
	}
	b := []byte{1}
	if err := s.write(b); err != nil {
		return err
	}
	return s.read(b)
}

// Datagrams sends datagrams of 64 bytes as fast as it can for a while, and
// returns how many a second the server has received, and what part of those
// sent was lost.
func (c *Client) Datagrams(d time.Duration) (rate, lost float64, err error) {
	err = c.Within(func() error {
		s, err := c.dial(unix.SOCK_DGRAM, countPort)
		if err != nil {
			return err
		}
		defer s.close()
		if _, err := s.counted(); err != nil { // begins to count anew
			return err
		}
		message := make([]byte, 64)
		sent, begin := 0, time.Now()
		for time.Since(begin) < d {
			for range 32 {
				switch _, err := unix.Write(int(s), message); err {
				case nil:
					sent++
				case unix.ENOBUFS, unix.EINTR:
				default:
					return fmt.Errorf("sending: %w", err)
				}
			}
		}
		elapsed := time.Since(begin).Seconds()
		received, err := s.counted()
		if err != nil {
			return err
		}
		rate, lost = float64(received)/elapsed, 1-float64(received)/float64(sent)
		return nil
	})
	return rate, lost, err
}

// counted asks how many datagrams came since it was asked last. The question
// comes after all of them, and may be lost as they are.
func (s socket) counted() (uint64, error) {
	limit := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return 0, fmt.Errorf("bounding a socket's patience: %w", err)
	}
	answer := make([]byte, 8)
	for range 10 {
		if err := s.write([]byte{0}); err != nil {
			return 0, fmt.Errorf("asking for the count: %w", err)
		}
		n, err := retry(func() (int, error) { return unix.Read(int(s), answer) })
		if err == nil && n == len(answer) {
			return binary.BigEndian.Uint64(answer), nil
		}
		if err != nil && err != unix.EAGAIN {
			return 0, fmt.Errorf("reading the count: %w", err)
		}
	}
	return 0, errors.New("the server does not say how many datagrams came")
}
