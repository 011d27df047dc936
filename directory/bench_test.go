package directory

import (
	"fmt"
	"log/slog"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// BenchmarkView is the cost of one event and the view made of it, with ten
// thousand pods.
func BenchmarkView(b *testing.B) {
	s := newState(slog.New(slog.DiscardHandler))
	event := func(i int) *clientv3.Event {
		p := pod.Pod{Spec: spec(fmt.Sprintf("p%d", i)), Phase: pod.PhaseRunning}
		return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(podPrefix + p.Name()), Value: encode(p)}}
	}
	for i := range 10_000 {
		s.apply(event(i))
	}
	e := event(77)
	for b.Loop() {
		s.apply(e)
		s.view()
	}
}
