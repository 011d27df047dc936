//go:build faults

package fault

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

var (
	mu   sync.Mutex
	file string
)

// Watch says which run directory's file tells what is to fail.
func Watch(runDir string) {
	mu.Lock()
	defer mu.Unlock()
	file = filepath.Join(runDir, "faults")
}

// At carries out what a test wants to happen at a point. conn is what the
// action "sever" closes; nil if there is nothing yet.
func At(point string, conn io.Closer) error {
	action, err := take(point)
	if err != nil || action == "" {
		return err
	}
	switch action {
	case "error":
		return errors.New("a fault was injected at " + point)
	case "full":
		return fmt.Errorf("a fault was injected at %s: %w", point, unix.ENOSPC)
	case "kill":
		return signal(unix.SIGKILL)
	case "stop":
		return signal(unix.SIGSTOP)
	case "sever":
		if conn == nil {
			return fmt.Errorf("fault at %s: there is no connection", point)
		}
		return conn.Close()
	}
	return fmt.Errorf("fault at %s: unknown action %q", point, action)
}

// take removes the first line for the point and returns its action, "" when
// there is none.
func take(point string) (action string, err error) {
	mu.Lock()
	defer mu.Unlock()
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking for faults: %w", err)
	}
	var rest []byte
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if action == "" && len(words) == 2 && words[0] == point {
			action = words[1]
			continue
		}
		rest = append(rest, line...)
	}
	if action == "" {
		return "", nil
	}
	if err := renameio.WriteFile(file, rest, 0o600); err != nil {
		return "", fmt.Errorf("noting a fault as done: %w", err)
	}
	return action, nil
}

// signal sends one to this very thread, which does nothing else before it is
// carried out.
func signal(s unix.Signal) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return unix.Tgkill(os.Getpid(), unix.Gettid(), s)
}
