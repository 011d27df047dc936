package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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

// ListenLocal opens a unix socket for root on this machine.
func ListenLocal(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	// From its first moment nobody else may come in. (What other goroutines
	// make at this moment gets less open, too.)
	umask := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(umask)
	if err != nil {
		return nil, fmt.Errorf("opening the daemon's socket: %w", err)
	}
	return l, nil
}

// newServer makes the server of an API for a listener: HTTP/1.1 and HTTP/2 for
// streams in both directions, with TLS unless it is a unix socket.
func (g *Guard) newServer(handler http.Handler, l net.Listener) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:           g.Wrap(handler),
		Protocols:         protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		ConnContext:       connContext,
		ErrorLog:          stdlog.New(serverLog{g.log}, "", 0),
	}
	if l.Addr().Network() == "unix" {
		protocols.SetUnencryptedHTTP2(true)
		return server
	}
	protocols.SetHTTP2(true)
	server.TLSConfig = g.store.ServerTLS()
	server.TLSConfig.DynamicRecordSizingDisabled = true // it is for browsers far away
	return server
}

// serverLog takes what net/http has to say: a handler's panic is among it, and
// every stranger who fails to shake hands, who must not fill the log.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	level, text := slog.LevelWarn, strings.TrimSpace(string(line))
	if strings.HasPrefix(text, "http: TLS handshake error") {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, text)
	return len(line), nil
}

// Serve serves what the guard lets through until ctx ends, then lets calls end
// for a moment. A listener that is no unix socket speaks TLS.
func (g *Guard) Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := g.newServer(handler, l)
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
	var err error
	if server.TLSConfig == nil {
		err = server.Serve(l)
	} else {
		err = server.ServeTLS(peerListener{l, g.revocations}, "", "")
	}
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the API at %s: %w", l.Addr(), err)
}
