//go:build root

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// namespace returns the identity of the calling thread's namespace.
func namespace(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink(current)
	if err != nil {
		t.Error(err)
	}
	return link
}

// TestDoRestores runs many functions at once, which succeed, fail or end their
// goroutine, and finds no thread in the wrong namespace afterwards.
func TestDoRestores(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	path := filepath.Join(t.TempDir(), "alice-1")
	t.Cleanup(func() {
		if err := Delete(path); err != nil {
			t.Error(err)
		}
	})
	if err := Create(path, nil); err != nil {
		t.Fatal(err)
	}
	home := namespace(t)
	failure := errors.New("failure")
	var group sync.WaitGroup
	for i := range 30 {
		group.Go(func() {
			err := Do(path, func() error {
				if namespace(t) == home {
					t.Error("the function runs in the wrong namespace")
				}
				switch i % 3 {
				case 0:
					return failure
				case 1:
					runtime.Goexit()
				}
				return nil
			})
			if i%3 == 0 && !errors.Is(err, failure) || i%3 == 1 && err == nil || i%3 == 2 && err != nil {
				t.Errorf("function %d: %v", i, err)
			}
		})
	}
	group.Wait()
	// More goroutines than there are threads, all locked at once.
	var started, checked sync.WaitGroup
	started.Add(20)
	for range 20 {
		checked.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started.Done()
			started.Wait()
			if namespace(t) != home {
				t.Error("a thread was left in the namespace")
			}
		})
	}
	checked.Wait()
}

// TestFailedSetupLeavesNothing makes sure that what exists is complete.
func TestFailedSetupLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice-1")
	failure := errors.New("failure")
	if err := Create(path, func() error { return failure }); !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}
