package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

const (
	// readHeaderTimeout bounds how long a client may take to say what it wants.
	readHeaderTimeout = 10 * time.Second
	// lockPatience is how long a lock is waited for, lockRetry how often it is
	// tried.
	lockPatience = 3 * time.Second
	lockRetry    = 20 * time.Millisecond
	// stopTimeout is how long calls under way are waited for. Streams that
	// follow something never end by themselves.
	stopTimeout = 2 * time.Second
)

// Lock makes sure that one daemon of a kind works with dir, which it makes if
// need be. The kernel drops the lock with the process, however it ends. The
// error wraps pod.ErrConflict when another one has it.
func Lock(dir, program string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, program+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	// A program that a killed daemon was about to start holds its lock for a
	// moment longer.
	deadline := time.Now().Add(lockPatience)
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("%w: another %s runs with %s; give this one its own --run-dir and --state-dir", pod.ErrConflict, program, dir)
		}
		time.Sleep(lockRetry)
	}
	return func() { f.Close() }, nil
}

// Listen opens the port of the API. The error wraps pod.ErrConflict when it is
// taken.
func Listen(at netip.AddrPort) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: port %d is in use by another program; choose another with --listen: %w", pod.ErrConflict, at.Port(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the port of the API: %w", err)
	}
	return l, nil
}

// NewServer makes the server of an API: HTTP/1.1, and HTTP/2 without TLS for
// streams in both directions.
func NewServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		// A handler's panic is among what it says.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// Serve serves until ctx ends, then lets calls end for a moment.
func Serve(ctx context.Context, server *http.Server, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if server.Shutdown(patience) != nil {
			// Calls that do not end; that closing them fails changes nothing.
			_ = server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the API at %s: %w", l.Addr(), err)
}
