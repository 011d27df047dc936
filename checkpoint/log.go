package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	dumpLog    = "dump.log"
	restoreLog = "restore.log"
	// outputLog gets what CRIU says before it opened its log.
	outputLog = "criu.out"
	// maxErrorLines is how many of CRIU's own lines an error quotes, the
	// last ones: the first is the cause, what follows is its way up.
	maxErrorLines = 8
	// maxLogLine cuts the lines of CRIU's log.
	maxLogLine = 1 << 10
)

// CRIUError is a failure inside CRIU, in its own words.
type CRIUError struct {
	// Op is "dump" or "restore".
	Op string
	// Lines are the last errors of CRIU's log, oldest first. CRIU's own
	// summary (cr_errmsg) is not used: it is the first error logged, which
	// is always a harmless one about a limit.
	Lines []string
}

func (e *CRIUError) Error() string {
	if len(e.Lines) == 0 {
		return fmt.Sprintf("CRIU could not %s the pod and did not say why", e.Op)
	}
	return fmt.Sprintf("CRIU could not %s the pod: %s", e.Op, strings.Join(e.Lines, "; "))
}

// errCRIUFailed means CRIU reported a failure; the reason is in its log.
var errCRIUFailed = errors.New("CRIU failed")

// inCRIUsWords returns a *CRIUError in place of an error for which CRIU is to blame, and any
// other as it is.
func inCRIUsWords(err error, op, workDir, logFile string) error {
	died := errors.Is(err, errWorkerGone)
	if !died && !errors.Is(err, errCRIUFailed) {
		return err
	}
	e := criuError(op, workDir, logFile)
	if died {
		e.Lines = append(e.Lines, "CRIU died")
	}
	return e
}

// criuError reads the reason of a failure from CRIU's log in workDir.
func criuError(op, workDir, logFile string) *CRIUError {
	e := &CRIUError{Op: op}
	for _, name := range []string{logFile, outputLog} {
		lines, err := errorLines(filepath.Join(workDir, name))
		if err != nil && !os.IsNotExist(err) {
			lines = append(lines, fmt.Sprintf("(reading CRIU's log: %v)", err))
		}
		e.Lines = append(e.Lines, lines...)
		if len(e.Lines) > 0 {
			break
		}
	}
	return e
}

func errorLines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseErrors(f)
}

// parseErrors picks the last errors from a log of CRIU. Lines look like
//
//	(00.012345)     42: Error (criu/sk-inet.c:137): inet: Unsupported proto 262
//
// with the time and the process only if there are any.
func parseErrors(r io.Reader) ([]string, error) {
	var lines []string
	reader := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, isPrefix, err := reader.ReadLine()
		if err == io.EOF {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
		if text, ok := errorText(string(line)); ok && (len(lines) == 0 || lines[len(lines)-1] != text) {
			if len(lines) == maxErrorLines {
				lines = append(lines[:0], lines[1:]...)
			}
			lines = append(lines, text)
		}
		for isPrefix && err == nil {
			_, isPrefix, err = reader.ReadLine()
		}
	}
}

// errorText returns the part of a log line from "Error" on, if it tells the
// reason of a failure.
func errorText(line string) (string, bool) {
	i := strings.Index(line, "Error (")
	if i < 0 {
		return "", false
	}
	line = strings.TrimSpace(line[i:])
	for _, noise := range []string{
		"RLIMIT_NOFILE", // CRIU tries to raise its own; nothing depends on it
		"Dumping FAILED", "Restoring FAILED",
		"One of more action scripts failed", "RPC client reported script error",
	} {
		if strings.Contains(line, noise) {
			return "", false
		}
	}
	return line, true
}
