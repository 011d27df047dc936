package proxy

import (
	"crypto/tls"
	"io"
	"testing"

	"podd/daemon"
	"podd/pod"
)

// BenchmarkRelay carries 256 KiB at a time from one host to the other, all of them,
// the proxy included, on one machine.
func BenchmarkRelay(b *testing.B) {
	m := newMeeting(b)
	m.register()
	move := m.begin("x", pod.StrategyCheckpointServer)
	m.ask("x", move.ID)
	near, far := m.connect("x")
	received := make(chan error, 1)
	go func() {
		server := tls.Server(far, m.stores["b"].ServerTLS())
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, server, make([]byte, 256<<10))
		received <- err
	}()
	conn, err := m.dialThrough(near)
	if err != nil {
		b.Fatal(err)
	}
	bulk := daemon.Bulk(conn)
	data := make([]byte, 256<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := bulk.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := bulk.Close(); err != nil {
		b.Error(err)
	}
	if err := <-received; err != nil {
		b.Error(err)
	}
}
