package podd

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// transferBytes is what the benchmarks send at once: a small desktop's memory.
const transferBytes = 34 << 20

// BenchmarkTransfer is the time that the memory of a small pod takes from one
// podd to another, with encryption.
func BenchmarkTransfer(b *testing.B) {
	received := make(chan error, 1)
	s := serveTransfers(b, func(conn *transferConn) {
		receiveAll(conn, received)
	})
	benchmark(b, dialTest(b, s), received)
}

// BenchmarkTransferPlain is the same without encryption, for comparison.
func BenchmarkTransferPlain(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- err
			return
		}
		defer conn.Close()
		receiveAll(conn, received)
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	benchmark(b, newTransferConn(conn, nil), received)
}

// receiveAll tells of each time that everything has come.
func receiveAll(r io.Reader, received chan<- error) {
	buffer := make([]byte, 1<<20)
	for {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(r, transferBytes)}, buffer)
		received <- err
		if err != nil {
			return
		}
	}
}

func benchmark(b *testing.B, conn *transferConn, received <-chan error) {
	b.SetBytes(transferBytes)
	page := make([]byte, 64<<10)
	begin := processorTime(b)
	for b.Loop() {
		for range transferBytes / len(page) {
			if _, err := conn.Write(page); err != nil {
				b.Fatal(err)
			}
		}
		if err := conn.writer.Flush(); err != nil {
			b.Fatal(err)
		}
		if err := <-received; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(processorTime(b)-begin)/1e6/float64(b.N), "cpu-ms/op")
}

// processorTime is that of both ends so far, in nanoseconds.
func processorTime(b *testing.B) int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
