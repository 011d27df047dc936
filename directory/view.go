package directory

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// View is everything in the directory as it was at one revision. Views are
// shared between readers: nothing in one may be changed.
type View struct {
	// Revision grows with every change of anything.
	Revision int64
	// Received is when this process learned of that, by its own clock.
	Received time.Time
	// Cluster is nil until a proxy has initialized the directory.
	Cluster *Cluster
	// Hosts and Proxies are by name, with Alive filled in.
	Hosts   map[string]pod.Host
	Proxies map[string]pod.Proxy
	// Pods are by name, Moves by ID; the journal includes finished moves.
	Pods  map[string]*pod.Pod
	Moves map[string]*pod.Move

	history history
	index   struct {
		sync.Once
		byVirtual, byPublic map[netip.Addr]*pod.Pod
	}
}

// PodAt finds the pod with the given virtual or public address; nil when there
// is none.
func (v *View) PodAt(a netip.Addr) *pod.Pod {
	v.index.Do(func() {
		v.index.byVirtual = make(map[netip.Addr]*pod.Pod, len(v.Pods))
		v.index.byPublic = make(map[netip.Addr]*pod.Pod, len(v.Pods))
		for _, p := range v.Pods {
			v.index.byVirtual[p.Binding.Virtual] = p
			v.index.byPublic[p.Binding.Public] = p
		}
	})
	if p := v.index.byVirtual[a]; p != nil {
		return p
	}
	return v.index.byPublic[a]
}

// PodsChangedSince names the pods whose record, or the record of whose move,
// has changed since an earlier view of the same watch, in no order and perhaps
// several times. ok is false when that is not known: earlier is of another
// watch or of before an interruption, or too much has happened since.
func (v *View) PodsChangedSince(earlier *View) (names []string, ok bool) {
	return v.history.since(&earlier.history)
}

// MoveOf is the move that p is in; nil when there is none.
func (v *View) MoveOf(p *pod.Pod) *pod.Move {
	if p.Move == "" {
		return nil
	}
	return v.Moves[p.Move]
}

// View reads everything at one revision.
func (d *Directory) View(ctx context.Context) (*View, error) {
	return d.viewOf(ctx, "reading the directory", root)
}

// viewOf is a view of the records under some prefixes only.
func (d *Directory) viewOf(ctx context.Context, what string, prefixes ...string) (*View, error) {
	bounded, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	s, err := d.list(bounded, prefixes...)
	if err != nil {
		return nil, d.explain(ctx, what, err)
	}
	return s.view(), nil
}

func (d *Directory) list(ctx context.Context, prefixes ...string) (*state, error) {
	gets := make([]clientv3.Op, len(prefixes))
	for i, prefix := range prefixes {
		gets[i] = clientv3.OpGet(prefix, clientv3.WithPrefix())
	}
	resp, err := d.etcd.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return nil, err
	}
	s := newState(d.log)
	s.revision, s.received = resp.Header.Revision, time.Now()
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			s.put(kv)
		}
	}
	return s, nil
}

// state is what views are made from: it takes events one by one. Its pods and
// moves maps are shared with the view made last, hence copied before a change.
type state struct {
	log      *slog.Logger
	revision int64
	received time.Time
	cluster  *Cluster
	hosts    map[string]pod.Host
	proxies  map[string]pod.Proxy
	alive    map[string]bool // by key
	pods     map[string]*pod.Pod
	moves    map[string]*pod.Move
	// podsShared and movesShared say that a view has the map.
	podsShared, movesShared bool
	history                 history
}

func newState(log *slog.Logger) *state {
	return &state{
		log:     log,
		hosts:   map[string]pod.Host{},
		proxies: map[string]pod.Proxy{},
		alive:   map[string]bool{},
		pods:    map[string]*pod.Pod{},
		moves:   map[string]*pod.Move{},
		history: newHistory(),
	}
}

// view is the state as readers see it.
func (s *state) view() *View {
	v := &View{
		Revision: s.revision,
		Received: s.received,
		Cluster:  s.cluster,
		Hosts:    maps.Clone(s.hosts),
		Proxies:  maps.Clone(s.proxies),
		Pods:     s.pods,
		Moves:    s.moves,
		history:  s.history,
	}
	s.podsShared, s.movesShared = true, true
	for name, h := range v.Hosts {
		h.Alive = s.alive[hostAlive+name]
		v.Hosts[name] = h
	}
	for name, p := range v.Proxies {
		p.Alive = s.alive[proxyAlive+name]
		v.Proxies[name] = p
	}
	return v
}

// apply takes one event of the watch.
func (s *state) apply(e *clientv3.Event) {
	if e.Type == mvccpb.DELETE {
		s.delete(string(e.Kv.Key))
		return
	}
	s.put(e.Kv)
}

// put takes a record. One that can't be read is reported and left out: it must
// not stop all others.
func (s *state) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	var err error
	switch prefix, name := split(key); prefix {
	case clusterKey:
		var c *Cluster
		if c, err = decode[Cluster](kv); err == nil {
			s.cluster = c
		}
	case hostPrefix:
		err = store(s.hosts, name, kv)
	case proxyPrefix:
		err = store(s.proxies, name, kv)
	case hostAlive, proxyAlive:
		s.alive[key] = true
	case podPrefix:
		s.ownPods()
		err = storePointer(s.pods, name, kv)
		s.history.add(name)
	case movePrefix:
		s.ownMoves()
		if err = storePointer(s.moves, name, kv); err == nil {
			s.history.add(s.moves[name].Pod)
		}
	}
	if err != nil {
		s.log.Error("ignoring a record", "error", err)
	}
}

func (s *state) delete(key string) {
	switch prefix, name := split(key); prefix {
	case hostPrefix:
		delete(s.hosts, name)
	case proxyPrefix:
		delete(s.proxies, name)
	case hostAlive, proxyAlive:
		delete(s.alive, key)
	case podPrefix:
		s.ownPods()
		delete(s.pods, name)
		s.history.add(name)
	case movePrefix:
		s.ownMoves()
		if m := s.moves[name]; m != nil {
			s.history.add(m.Pod)
		}
		delete(s.moves, name)
	}
}

func (s *state) ownPods() {
	if s.podsShared {
		s.pods, s.podsShared = maps.Clone(s.pods), false
	}
}

func (s *state) ownMoves() {
	if s.movesShared {
		s.moves, s.movesShared = maps.Clone(s.moves), false
	}
}

// split parts a key after its last slash; a key of the root is its own prefix.
func split(key string) (prefix, name string) {
	i := strings.LastIndexByte(key, '/') + 1
	if key[:i] == root {
		return key, ""
	}
	return key[:i], key[i:]
}

func store[T any](m map[string]T, name string, kv *mvccpb.KeyValue) error {
	v, err := decode[T](kv)
	if err == nil {
		m[name] = *v
	}
	return err
}

func storePointer[T any](m map[string]*T, name string, kv *mvccpb.KeyValue) error {
	v, err := decode[T](kv)
	if err == nil {
		m[name] = v
	}
	return err
}

// sorted lists a map's values in the order of its keys.
func sorted[K cmp.Ordered, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

func (v *View) String() string {
	return fmt.Sprintf("directory at revision %d: %d hosts, %d pods, %d moves", v.Revision, len(v.Hosts), len(v.Pods), len(v.Moves))
}
