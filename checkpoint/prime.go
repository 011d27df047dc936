package checkpoint

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// featureCache is where CRIU keeps what it found out about the kernel
// (criu/kerndat.c). A CRIU that finds it starts 20 to 60 ms sooner, which
// counts on the target, where it happens while the pod is frozen.
const featureCache = "/run/criu.kdat"

// prime fills CRIU's feature cache. CRIU writes it only to a tmpfs, so that it
// is gone after a reboot; where /run is something else, as in some virtual
// machines, CRIU is run once with a private tmpfs there and the file is
// copied out. Each start of an Engine writes it anew, so a cache from before
// a reboot is not used.
func (e *Engine) prime(ctx context.Context) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(featureCache), &fs); err != nil {
		return fmt.Errorf("reading the file system of %s: %w", filepath.Dir(featureCache), err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		_, err := e.checkFeatures(ctx)
		return err
	}
	cache, err := e.probePrivately(ctx)
	if err != nil {
		return err
	}
	return renameio.WriteFile(featureCache, cache, 0o600)
}

// probePrivately lets CRIU probe the kernel in a mount namespace with its own
// tmpfs on /run, and returns the cache it wrote.
func (e *Engine) probePrivately(ctx context.Context) ([]byte, error) {
	type result struct {
		cache []byte
		err   error
	}
	done := make(chan result)
	go func() {
		// The thread is never unlocked: it ends with this goroutine, and
		// its mount namespace with it.
		runtime.LockOSThread()
		cache, err := func() ([]byte, error) {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return nil, fmt.Errorf("creating a mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return nil, fmt.Errorf("making mounts private: %w", err)
			}
			if err := unix.Mount("tmpfs", filepath.Dir(featureCache), "tmpfs", 0, "mode=755"); err != nil {
				return nil, fmt.Errorf("mounting a private tmpfs: %w", err)
			}
			if _, err := e.checkFeatures(ctx); err != nil {
				return nil, err
			}
			return os.ReadFile(featureCache)
		}()
		done <- result{cache, err}
	}()
	r := <-done
	return r.cache, r.err
}
