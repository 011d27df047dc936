package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// run runs a command to its end; the error has what it wrote.
func run(ctx context.Context, argv ...string) error {
	_, err := output(ctx, argv...)
	return err
}

// output is run that returns standard output. Both outputs go to files: a
// container that is left running would keep pipes open.
func output(ctx context.Context, argv ...string) (string, error) {
	file, err := os.CreateTemp("", "podd-bench-")
	if err != nil {
		return "", fmt.Errorf("running %s: %w", argv[0], err)
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return "", fmt.Errorf("running %s: %w", argv[0], err)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = file, file
	err = cmd.Run()
	var text bytes.Buffer
	if _, seekErr := file.Seek(0, 0); seekErr == nil {
		if _, readErr := text.ReadFrom(file); readErr != nil {
			err = errors.Join(err, readErr)
		}
	}
	if err != nil {
		return text.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, lastLines(text.String()))
	}
	return text.String(), nil
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " / ")
}

// errorOf adds the errors in one of CRIU's logs to err.
func errorOf(err error, log string) error {
	if err == nil {
		return nil
	}
	data, readErr := os.ReadFile(log)
	if readErr != nil {
		return err
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		// The limits of open files are beyond some machines' rights, and harmless.
		if strings.Contains(line, "Error") && !strings.Contains(line, "RLIMIT") && !strings.Contains(line, "rlimit") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if len(found) == 0 {
		return err
	}
	return fmt.Errorf("%w; CRIU says: %s", err, strings.Join(found[max(0, len(found)-3):], " / "))
}

// reap waits for a process that this one has inherited; some machines' first
// process would leave it a zombie, and its number taken.
func reap(ctx context.Context, pid int) error {
	for {
		_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.ECHILD) {
			// Not ours: all that can be done is to wait until it is gone.
			if err := unix.Kill(pid, 0); err != nil || zombie(pid) {
				return nil
			}
		} else if err != nil {
			return fmt.Errorf("waiting for process %d: %w", pid, err)
		} else if unix.Kill(pid, 0) != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func zombie(pid int) bool {
	stat, err := procfs.ReadStat(pid)
	return err != nil || stat.Ended()
}

// Adopt makes this process inherit the containers that the commands it runs
// leave behind, so that it can wait for them.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming a subreaper: %w", err)
	}
	return nil
}

// remake empties a directory.
func remake(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("emptying a directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("emptying a directory: %w", err)
	}
	return nil
}
