package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CRIU dumps a tree of processes and restores it where it was, with nothing
// around it: no container, no other host, no copying. It is what a move by
// CRIU can't be faster than without changing what CRIU does.
type CRIU struct {
	Args []string
	// Link has the network namespace, which CRIU is started in: so it need not
	// dump it.
	Link *Link
	// Images is a tmpfs.
	Images string
	pids   []int
}

func (c *CRIU) inside(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + c.Link.Namespace(0), "--"}, argv...)
}

// Start starts the tree.
func (c *CRIU) Start(context.Context) error {
	if err := c.Link.Route(0); err != nil {
		return err
	}
	argv := c.inside(c.Args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", c.Args[0], err)
	}
	c.pids = []int{cmd.Process.Pid}
	return cmd.Process.Release() // CRIU will kill it, and reap waits for it
}

// Cycle dumps and restores the tree. After an error other than ErrNotDumped it
// has to be stopped.
func (c *CRIU) Cycle(ctx context.Context) (t Times, err error) {
	if err := remake(c.Images); err != nil {
		return t, err
	}
	if c.pids, err = tree(c.pids[0]); err != nil {
		return t, err
	}
	begin := time.Now()
	err = run(ctx, c.inside("criu", "dump", "--tree", strconv.Itoa(c.pids[0]), "--images-dir", c.Images, "--tcp-established", "--log-file", "dump.log")...)
	if err != nil {
		return t, fmt.Errorf("%w: %w", ErrNotDumped, errorOf(err, filepath.Join(c.Images, "dump.log")))
	}
	// The numbers must be free for those that are restored.
	for _, pid := range c.pids {
		if err := reap(ctx, pid); err != nil {
			return t, err
		}
	}
	dumped := time.Now()
	t.Checkpoint = dumped.Sub(begin)
	err = run(ctx, c.inside("criu", "restore", "--images-dir", c.Images, "--tcp-established", "--restore-detached", "--log-file", "restore.log")...)
	if err != nil {
		return t, errorOf(err, filepath.Join(c.Images, "restore.log"))
	}
	t.Restore = time.Since(dumped)
	return t, os.RemoveAll(c.Images)
}

// Stop kills the tree.
func (c *CRIU) Stop(ctx context.Context) error {
	if len(c.pids) == 0 {
		return nil
	}
	pids, err := tree(c.pids[0])
	if err != nil {
		pids = c.pids
	}
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("killing process %d: %w", pid, err))
		}
	}
	for _, pid := range pids {
		errs = append(errs, reap(ctx, pid))
	}
	c.pids = nil
	return errors.Join(errs...)
}

// tree lists a process and its descendants.
func tree(root int) ([]int, error) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("process %d has ended", pids[i])
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("looking for processes: %w", err)
			}
			for word := range strings.FieldsSeq(string(data)) {
				pid, err := strconv.Atoi(word)
				if err != nil {
					return nil, fmt.Errorf("looking for processes: %w", err)
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}
