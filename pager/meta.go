package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/renameio/v2"
)

// meta is what a pager remembers besides content and spaces.
type meta struct {
	// Generation counts the pagers that there were.
	Generation int     `json:"generation"`
	Pager      process `json:"pager"`
	Keeper     process `json:"keeper"`
	// Hello: the source has been talked to.
	Hello    bool `json:"hello"`
	Verified bool `json:"verified"`
	Running  bool `json:"running"`
	// Forgotten are processes that are to be attached once more, for their
	// userfaultfds are gone.
	Forgotten []int `json:"forgotten,omitempty"`
	// Frozen are the reasons why the pager keeps the pod frozen; Froze says that
	// it was the pager that froze it.
	Frozen []string `json:"frozen,omitempty"`
	Froze  bool     `json:"froze"`
	// Lost says why the memory will never be complete.
	Lost string `json:"lost,omitempty"`
	// Final is the last status.
	Final *Status `json:"final,omitempty"`
}

const metaName = "meta.json"

func readMeta(dir string) (meta, error) {
	var m meta
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m, fmt.Errorf("reading what the pager remembers: %w", err)
	}
	return m, nil
}

// metaFile is a meta that is on tmpfs whenever a change of it returns. It is safe
// for concurrent use.
type metaFile struct {
	dir     string
	mu      sync.Mutex // of changes
	current atomic.Pointer[meta]
}

// openMeta reads what the pager before this one remembered; nothing if there was
// none.
func openMeta(dir string) (*metaFile, error) {
	m, err := readMeta(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f := &metaFile{dir: dir}
	f.current.Store(&m)
	return f, nil
}

// get returns what nobody may change.
func (f *metaFile) get() *meta { return f.current.Load() }

func (f *metaFile) change(change func(*meta)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changeLocked(change)
}

func (f *metaFile) changeLocked(change func(*meta)) error {
	m := *f.current.Load()
	m.Frozen, m.Forgotten = slices.Clone(m.Frozen), slices.Clone(m.Forgotten)
	change(&m)
	b, err := json.Marshal(m)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(f.dir, metaName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remembering: %w", err)
	}
	f.current.Store(&m)
	return nil
}

// freeze freezes the pod for a reason. That it can't be frozen is no reason to
// stop: who needs what is missing waits all the same.
func (f *metaFile) freeze(pod freezer, cause string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.get().Frozen, cause) {
		return nil
	}
	first := len(f.get().Frozen) == 0
	err := f.changeLocked(func(m *meta) {
		m.Frozen = append(m.Frozen, cause)
		m.Froze = m.Froze || first
	})
	if err != nil || !first {
		return err
	}
	froze, err := pod.freeze()
	if err != nil {
		cause := fmt.Sprintf("%s (%v)", cause, err)
		return f.changeLocked(func(m *meta) { m.Frozen, m.Froze = []string{cause}, false })
	}
	if !froze {
		return f.changeLocked(func(m *meta) { m.Froze = false })
	}
	return nil
}

// thaw takes a reason away, and thaws the pod when that was the last.
func (f *metaFile) thaw(pod freezer, cause string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(f.get().Frozen), func(c string) bool { return strings.HasPrefix(c, cause) })
	if len(rest) == len(f.get().Frozen) {
		return nil
	}
	if len(rest) == 0 && f.get().Froze {
		if err := pod.thaw(); err != nil && !errors.Is(err, os.ErrNotExist) { // or the pod is gone
			return err
		}
	}
	return f.changeLocked(func(m *meta) {
		m.Frozen = rest
		m.Froze = m.Froze && len(rest) > 0
	})
}
