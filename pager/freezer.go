package pager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// freezer freezes the pod's cgroup: cgroup.freeze in version 2, freezer.state in
// version 1. It does not wait for the processes: those that run on for a moment
// can't touch what is missing.
//
// Some run on all the time. A thread that misses a page within a system call stands
// still only where the call ends: freezing interrupts its wait as a signal would, and
// the kernel has it try the page again at once, tens of thousands of times a second
// (only a fatal signal ends a fault of the kernel's own, see fault_signal_pending in
// include/linux/sched/signal.h). So a frozen pod runs only when nobody else wants to.
type freezer string

// control returns the file to write, the word that freezes and the one that thaws.
func (f freezer) control() (path, freeze, thaw string, err error) {
	path = filepath.Join(string(f), "cgroup.freeze")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, "1", "0", err
	}
	return filepath.Join(string(f), "freezer.state"), "FROZEN", "THAWED", nil
}

// setIdle says that the pod runs only when nobody else wants to (cpu.idle, since Linux
// 5.15 of both versions), or as others do. Without that, what runs on costs more.
func (f freezer) setIdle(idle bool) {
	word := "0"
	if idle {
		word = "1"
	}
	dir := strings.Replace(string(f), "/freezer/", "/cpu/", 1)
	if file, err := os.OpenFile(filepath.Join(dir, "cpu.idle"), os.O_WRONLY, 0); err == nil {
		_, _ = file.WriteString(word)
		_ = file.Close()
	}
}

// freeze freezes the pod and reports whether it was this call that did.
func (f freezer) freeze() (bool, error) {
	path, freeze, thaw, err := f.control()
	if err != nil {
		return false, fmt.Errorf("freezing the pod: %w", err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("freezing the pod: %w", err)
	}
	if strings.TrimSpace(string(was)) != thaw {
		return false, nil // it is paused; whoever did that thaws it
	}
	if err := os.WriteFile(path, []byte(freeze), 0); err != nil {
		return false, fmt.Errorf("freezing the pod: %w", err)
	}
	f.setIdle(true)
	return true, nil
}

// thaw lets the pod run.
func (f freezer) thaw() error {
	f.setIdle(false)
	path, _, thaw, err := f.control()
	if err == nil {
		err = os.WriteFile(path, []byte(thaw), 0)
	}
	if err != nil {
		return fmt.Errorf("thawing the pod: %w", err)
	}
	return nil
}
