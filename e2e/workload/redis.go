package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// RedisConfig says what load to put on a redis-server.
type RedisConfig struct {
	// Address is host:port.
	Address string
	Dial    DialFunc
	// Pipeline is the number of commands sent before their replies are read;
	// 0 means 48.
	Pipeline int
	// Interval is the pause between two pipelines; 0 means 2 ms.
	Interval time.Duration
	// Prefix of the keys, so that several clients do not meet.
	Prefix string
}

// redisKeys is how many keys are written over and over, and how many have a
// time to live.
const redisKeys = 200

// redisTTL is the time to live of the first key in seconds; each next one has
// one second more.
const redisTTL = 3600

// Redis is a pipelining client of redis-server that checks every reply.
type Redis struct {
	*Silence
	*stopper
	config RedisConfig

	mu      sync.Mutex
	result  RedisResult
	counter int64            // last value of the counter
	values  map[string]int64 // last acknowledged value of every key
	ttlSet  time.Time
}

// RedisResult is what a Redis has seen so far.
type RedisResult struct {
	// Replies is the number of replies, all of them right.
	Replies int64 `json:"replies"`
	// LongestSilence is between two pipelines' replies.
	LongestSilence time.Duration `json:"longestSilence"`
}

// NewRedis returns a client that does nothing before Run.
func NewRedis(c RedisConfig) *Redis {
	if c.Pipeline == 0 {
		c.Pipeline = 48
	}
	if c.Interval == 0 {
		c.Interval = 2 * time.Millisecond
	}
	return &Redis{Silence: newSilence(), stopper: newStopper(), config: c, values: map[string]int64{}}
}

// Run puts load on one connection until Stop, or returns the first error or
// wrong reply.
func (r *Redis) Run(ctx context.Context) error {
	conn, err := dialRedis(ctx, r.config)
	if err != nil {
		return err
	}
	defer conn.close()
	if err := r.setTTLs(conn); err != nil {
		return ctxErr(ctx, err)
	}
	for n := int64(0); !r.stopped(); n++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.pipeline(conn, n); err != nil {
			return ctxErr(ctx, fmt.Errorf("redis at %s after %d replies: %w", r.config.Address, r.Result().Replies, err))
		}
		r.mark()
		r.pause(ctx, r.config.Interval)
	}
	return nil
}

// Result returns what was seen so far. It may be called at any time.
func (r *Redis) Result() RedisResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.LongestSilence = r.Longest()
	return r.result
}

func (r *Redis) key(kind string, i int64) string {
	return r.config.Prefix + kind + ":" + strconv.FormatInt(i%redisKeys, 10)
}

func (r *Redis) setTTLs(conn *redisConn) error {
	set := time.Now()
	for i := range int64(redisKeys) {
		conn.send("SET", r.key("ttl", i), strconv.FormatInt(i, 10), "EX", strconv.FormatInt(redisTTL+i, 10))
	}
	conn.send("DEL", r.config.Prefix+"counter")
	for range redisKeys {
		if err := conn.expect("+OK"); err != nil {
			return fmt.Errorf("setting keys with a time to live: %w", err)
		}
	}
	if _, err := conn.reply(); err != nil {
		return fmt.Errorf("deleting the counter: %w", err)
	}
	r.mu.Lock()
	r.ttlSet = set
	r.mu.Unlock()
	return nil
}

// pipeline sends the n-th batch: a third each sets a key, reads it back, and
// counts.
func (r *Redis) pipeline(conn *redisConn, n int64) error {
	sets := int64(r.config.Pipeline+2) / 3
	for i := n * sets; i < (n+1)*sets; i++ {
		conn.send("SET", r.key("key", i), strconv.FormatInt(i, 10))
		conn.send("GET", r.key("key", i))
		conn.send("INCR", r.config.Prefix+"counter")
	}
	for i := n * sets; i < (n+1)*sets; i++ {
		value := strconv.FormatInt(i, 10)
		if err := conn.expect("+OK"); err != nil {
			return err
		}
		if err := conn.expect("$" + value); err != nil {
			return err
		}
		if err := conn.expect(":" + strconv.FormatInt(i+1, 10)); err != nil {
			return err
		}
		r.mu.Lock()
		r.values[r.key("key", i)] = i
		r.counter = i + 1
		r.result.Replies += 3
		r.mu.Unlock()
	}
	return nil
}

// Verify checks over a new connection that every key has the value that was
// last written and every time to live what is left of it. Run must have ended.
func (r *Redis) Verify(ctx context.Context) error {
	conn, err := dialRedis(ctx, r.config)
	if err != nil {
		return err
	}
	defer conn.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, value := range r.values {
		conn.send("GET", key)
		if err := conn.expect("$" + strconv.FormatInt(value, 10)); err != nil {
			return ctxErr(ctx, fmt.Errorf("key %s: %w", key, err))
		}
	}
	conn.send("GET", r.config.Prefix+"counter")
	if err := conn.expect("$" + strconv.FormatInt(r.counter, 10)); err != nil {
		return ctxErr(ctx, fmt.Errorf("counter: %w", err))
	}
	for i := range int64(redisKeys) {
		conn.send("TTL", r.key("ttl", i))
		got, err := conn.integer()
		if err != nil {
			return ctxErr(ctx, fmt.Errorf("time to live of %s: %w", r.key("ttl", i), err))
		}
		// redis rounds to whole seconds, and counts by the wall clock.
		want := redisTTL + i - int64(time.Since(r.ttlSet).Seconds())
		if got < want-3 || got > want+3 {
			return fmt.Errorf("time to live of %s is %d s, want about %d s", r.key("ttl", i), got, want)
		}
	}
	return nil
}

// redisConn speaks RESP2 (redis.io/docs/latest/develop/reference/protocol-spec).
type redisConn struct {
	net.Conn
	r       *bufio.Reader
	w       *bufio.Writer
	release func() bool
}

func dialRedis(ctx context.Context, c RedisConfig) (*redisConn, error) {
	conn, err := c.Dial.dial(ctx, "tcp", c.Address)
	if err != nil {
		return nil, err
	}
	return &redisConn{conn, bufio.NewReader(conn), bufio.NewWriter(conn), closeOnDone(ctx, conn)}, nil
}

func (c *redisConn) close() {
	c.release()
	c.Close()
}

// send puts a command into the buffer; an error shows when the reply is read.
func (c *redisConn) send(args ...string) {
	fmt.Fprintf(c.w, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(c.w, "$%d\r\n%s\r\n", len(a), a)
	}
}

// reply flushes what was sent and reads one reply: its type and its content.
func (c *redisConn) reply() (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if err := c.w.Flush(); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if !strings.HasPrefix(line, "$") || line == "$-1" {
		return line, nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > 1<<20 {
		return "", fmt.Errorf("reply %q is no RESP", line)
	}
	bulk := make([]byte, n+2)
	if _, err := io.ReadFull(c.r, bulk); err != nil {
		return "", err
	}
	return "$" + string(bulk[:n]), nil
}

var errReply = errors.New("wrong reply")

func (c *redisConn) expect(want string) error {
	got, err := c.reply()
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%w: %q, want %q", errReply, got, want)
	}
	return nil
}

func (c *redisConn) integer() (int64, error) {
	got, err := c.reply()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(got, ":"), 10, 64)
	if err != nil || !strings.HasPrefix(got, ":") {
		return 0, fmt.Errorf("%w: %q, want a number", errReply, got)
	}
	return n, nil
}
