//go:build root

package pager

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"

	"podd/pagesync"
	"podd/trust"
	"podd/trust/trusttest"
)

// mix is splitmix64, as in testdata/pod.c.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

// frozenPage writes what testdata/pod.c says that the page has; false if it is all
// zeros.
func frozenPage(seed uint64, pid int, address uint64, b []byte) bool {
	if mix(seed^uint64(pid)<<48^address/pageSize)%4 == 0 {
		clear(b)
		return false
	}
	for i := range uint64(pageSize / 8) {
		binary.LittleEndian.PutUint64(b[i*8:], mix(seed^uint64(pid)<<48^(address+i*8))|1)
	}
	return true
}

// testSource is a host that has the memory of frozen pods, and says it over a
// connection as package pagesync does.
type testSource struct {
	t         testing.TB
	stateDir  string
	serial    string // of its certificate
	listener  net.Listener
	seed      uint64
	wg        sync.WaitGroup
	mu        sync.Mutex
	regions   []pagesync.Region
	conn      net.Conn
	accepting bool
	serve     func(c *sourceConn)
	wants     int
	deaf      <-chan struct{} // wants are not answered until it is closed
	acks      chan uint64
}

// sourceConn is one connection of a pager.
type sourceConn struct {
	*testSource
	again bool
	wmu   sync.Mutex
	w     *pagesync.Writer
	r     *pagesync.Reader
}

func newTestSource(t testing.TB, seed uint64) *testSource {
	t.Helper()
	issuer := trusttest.Cluster(t)
	source := trusttest.Member(t, issuer, trust.Identity{Kind: trust.KindHost, Name: "source"}, 0)
	stateDir := t.TempDir()
	trusttest.MemberIn(t, trust.Dir(stateDir), issuer, trust.Identity{Kind: trust.KindHost, Name: "target"}, 0)
	l, err := tls.Listen("tcp", "127.0.0.1:0", source.ServerTLS())
	if err != nil {
		t.Fatal(err)
	}
	s := &testSource{t: t, stateDir: stateDir, serial: trust.Serial(source.Leaf()), listener: l, seed: seed, accepting: true, acks: make(chan uint64, 1024)}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := source.Peer(r.TLS)
		if err != nil || peer.Name != "target" || r.URL.Path != "/podd-memory" || r.URL.Query().Get("move") != "m1" || r.Header.Get("Upgrade") != Protocol {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		s.mu.Lock()
		accepting := s.accepting
		s.mu.Unlock()
		if !accepting {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		s.wg.Go(func() { s.handle(conn) })
	})}
	s.wg.Go(func() { server.Serve(l) })
	t.Cleanup(func() {
		server.Close()
		s.cut(false)
		s.wg.Wait()
	})
	return s
}

// cut ends the connection; others are refused until accept.
func (s *testSource) cut(accept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepting = accept
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *testSource) accept() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepting = true
}

func (s *testSource) handle(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	if s.conn != nil {
		s.conn.Close()
	}
	s.conn = conn
	s.mu.Unlock()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n"); err != nil {
		return
	}
	c := &sourceConn{testSource: s, w: pagesync.NewWriter(conn), r: pagesync.NewReader(conn)}
	hello, err := c.r.Next()
	if err != nil || hello.Kind != pagesync.KindHello {
		return
	}
	c.again = hello.Flags&pagesync.FlagAgain != 0
	var wg sync.WaitGroup
	defer wg.Wait()
	if c.again {
		c.say(pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: s.regions})
	} else {
		wg.Go(func() { s.serve(c) })
	}
	for {
		f, err := c.r.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && errors.Is(err, pagesync.ErrFrame) {
				s.t.Error(err)
			}
			return
		}
		switch f.Kind {
		case pagesync.KindWant:
			s.mu.Lock()
			s.wants++
			s.mu.Unlock()
			if s.deaf != nil {
				<-s.deaf
			}
			c.pages(f.Region())
		case pagesync.KindAck:
			s.acks <- f.Number
			if f.Number == pagesync.Done {
				return
			}
		default:
			s.t.Errorf("the pager said %v", f.Kind)
		}
	}
}

// say sends frames at once. A connection that is gone ends with its reader.
func (c *sourceConn) say(frames ...pagesync.Frame) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for _, f := range frames {
		if err := c.w.Write(f); err != nil {
			if errors.Is(err, pagesync.ErrFrame) {
				c.t.Error(err)
			}
			return
		}
	}
	c.w.Flush()
}

// pages sends the frozen content of a range, as data, zeros and absent pages.
func (c *sourceConn) pages(r pagesync.Region) {
	b := make([]byte, pageSize)
	var payload []byte
	start := r.Start
	flush := func(end uint64) {
		if len(payload) > 0 {
			c.say(pagesync.Frame{Kind: pagesync.KindData, PID: r.PID, Address: start, Pages: len(payload) / pageSize, Payload: payload})
		}
		payload, start = payload[:0], end
	}
	for a := r.Start; a < r.End; a += pageSize {
		if frozenPage(c.seed, r.PID, a, b) {
			if payload = append(payload, b...); len(payload) == pagesync.MaxPayload {
				flush(a + pageSize)
			}
			continue
		}
		flush(a)
		kind := pagesync.KindZero
		if mix(a)%2 == 0 {
			kind = pagesync.KindAbsent
		}
		c.say(pagesync.Frame{Kind: kind, PID: r.PID, Address: a, Pages: 1})
		start = a + pageSize
	}
	flush(r.End)
}

// candidates sends the content of a range as it may have been before the freeze.
func (c *sourceConn) candidates(r pagesync.Region, right func(address uint64) bool) {
	b := make([]byte, pageSize)
	for a := r.Start; a < r.End; a += pageSize {
		f := pagesync.Frame{Kind: pagesync.KindData, PID: r.PID, Address: a, Pages: 1, Payload: b}
		if !frozenPage(c.seed, r.PID, a, b) {
			f.Kind, f.Payload = pagesync.KindZero, nil
		}
		if !right(a) {
			for i := range b {
				b[i] = 0xee
			}
			f.Kind, f.Payload = pagesync.KindData, b
		}
		c.say(f)
	}
}

// pieces cuts regions into pieces in any order.
func pieces(r *rand.Rand, regions []pagesync.Region, most int) []pagesync.Region {
	var all []pagesync.Region
	for _, region := range regions {
		for a := region.Start; a < region.End; {
			end := min(region.End, a+uint64(1+r.IntN(most))*pageSize)
			all = append(all, pagesync.Region{PID: region.PID, Start: a, End: end})
			a = end
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}
