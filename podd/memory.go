package podd

import (
	"net"
	"net/http"
	"sync"

	"podd/daemon"
	"podd/pager"
	"podd/pod"
)

// Most of the memory of a pod crosses beside the conversation of its move, on
// connections that the pager of the target makes: it needs them when that
// conversation, and the podd at either end, may be over. Package pagesync has
// what is spoken on them.
const memoryPath = "/podd-memory"

// memories are the pods whose memory this host gives to others, by move. The zero
// value is ready.
type memories struct {
	mu    sync.Mutex
	given map[string]givenMemory
	// frozen are the pods that have moved on and whose memory an earlier podd gave:
	// the incarnation that is here.
	frozen map[string]pod.Epoch
}

// givenMemory is the memory of one move, and the host that may have it.
type givenMemory struct {
	target string
	serve  func(net.Conn) error
}

// give lets the target of a move have a pod's memory, until take is called.
func (m *memories) give(move, target string, serve func(net.Conn) error) (take func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.given == nil {
		m.given = map[string]givenMemory{}
	}
	m.given[move] = givenMemory{target, serve}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.given, move)
	}
}

func (m *memories) find(move string) (g givenMemory, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok = m.given[move]
	return g, ok
}

// keep notes that an incarnation which has moved on is needed for its memory, until
// drop is called.
func (m *memories) keep(name string, epoch pod.Epoch) (drop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen == nil {
		m.frozen = map[string]pod.Epoch{}
	}
	m.frozen[name] = epoch
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.frozen, name)
	}
}

// kept is the incarnation of a pod that keep was called for, or 0.
func (m *memories) kept(name string) pod.Epoch {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.frozen[name]
}

// keeping reports whether any incarnation is kept.
func (m *memories) keeping() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.frozen) > 0
}

// serveMemory is the source's end of a connection that a pager makes. Only the
// target of the move gets any of it. 410 says that this host has not got the
// memory, and will not have it again: asking once more is of no use.
func (d *Daemon) serveMemory(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, reason string) {
		d.log.Warn("memory was asked for and refused", "peer", r.RemoteAddr, "move", r.URL.Query().Get("move"), "reason", reason)
		http.Error(w, reason, status)
	}
	peer, err := daemon.HostFrom(r)
	if err != nil {
		refuse(http.StatusForbidden, err.Error())
		return
	}
	move := r.URL.Query().Get("move")
	given, ok := d.memories.find(move)
	switch {
	case !ok && d.memories.keeping():
		refuse(http.StatusServiceUnavailable, "host "+d.Name+" is getting ready")
		return
	case !ok:
		refuse(http.StatusGone, "host "+d.Name+" has no memory of move "+move)
		return
	case given.target != peer:
		refuse(http.StatusForbidden, "move "+move+" does not go to host "+peer)
		return
	}
	conn, err := acceptUpgrade(w, r, pager.Protocol)
	if err != nil {
		d.log.Warn("memory was asked for and refused", "peer", peer, "move", move, "error", err)
		return
	}
	defer conn.Close()
	if err := given.serve(conn); err != nil {
		d.log.Info("a connection for memory ends", "peer", peer, "move", move, "error", err)
	}
}
