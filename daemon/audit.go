package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"podd/api"
)

const (
	// auditSize is how large the audit file may grow, in bytes, before it is
	// put aside, auditKept how many that were put aside are kept.
	auditSize = 16 << 20
	auditKept = 8
	// strangerBurst is how many refusals of calls without a certificate are
	// written down at once, strangerInterval how long until the next may be:
	// a stranger must not be able to push everything else out of the files.
	strangerBurst    = 20
	strangerInterval = 3 * time.Second
	// maxAuditError bounds the error in a record, in bytes: its text may be
	// the caller's.
	maxAuditError = 512
)

// auditRecord is one line of the audit file.
type auditRecord struct {
	Time   time.Time `json:"time"`
	Caller string    `json:"caller"`
	// Address is where the caller is, Via the host that passed the call on.
	Address   string `json:"address"`
	Via       string `json:"via,omitempty"`
	Procedure string `json:"procedure"`
	// Subject is what the call is about: "pod alice", "host b".
	Subject string `json:"subject"`
	// Result is "ok" or the name of the error's code.
	Result   string  `json:"result"`
	Error    string  `json:"error,omitempty"`
	Duration float64 `json:"durationMs"`
	// Unrecorded is how many refusals of strangers were not written down
	// since the last that was.
	Unrecorded int `json:"unrecorded,omitempty"`
}

// Audit is the file in which a daemon writes down every call that is to change
// something, one JSON object per line.
type Audit struct {
	path string
	log  *slog.Logger
	size int64 // limit

	mu         sync.Mutex
	file       *os.File
	written    int64
	tokens     int // refusals of strangers that may be written now
	refilled   time.Time
	unrecorded int
}

// OpenAudit opens the audit file, and makes it with mode 0600 if need be.
func OpenAudit(path string, log *slog.Logger) (*Audit, error) {
	a := &Audit{path: path, log: log, size: auditSize, tokens: strangerBurst, refilled: time.Now()}
	return a, a.open()
}

func (a *Audit) open() error {
	f, err := os.OpenFile(a.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the audit file: %w", err)
	}
	// One that was made by hand may be open to others.
	if err := f.Chmod(0o600); err != nil {
		return errors.Join(fmt.Errorf("opening the audit file: %w", err), f.Close())
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("opening the audit file: %w", err), f.Close())
	}
	a.file, a.written = f, st.Size()
	return nil
}

// Close closes the file.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

// record writes down a call that began at a time and ended just now. The call
// has been decided by then; a file that can't be written is told in the log,
// with what should be in it.
func (a *Audit) record(c Caller, procedure, subject string, began time.Time, failure error) {
	now := time.Now()
	r := auditRecord{
		Time: began.UTC(), Caller: c.String(), Address: c.Address, Via: c.Via, Procedure: procedure, Subject: subject, Result: "ok",
		Duration: float64(now.Sub(began).Microseconds()) / 1000,
	}
	if failure != nil {
		r.Result = connect.CodeOf(api.ErrorToConnect(failure)).String()
		r.Error = message(failure)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.Known() && failure != nil && !a.admitStranger(now) {
		a.unrecorded++
		return
	}
	r.Unrecorded, a.unrecorded = a.unrecorded, 0
	if err := a.write(r); err != nil {
		a.log.Error("writing the audit file failed", "error", err, "record", r)
	}
}

// message is an error's text without its code.
func message(err error) string {
	text := err.Error()
	var coded *connect.Error
	if errors.As(err, &coded) {
		text = coded.Message()
	}
	if len(text) > maxAuditError {
		text = text[:maxAuditError] + "..."
	}
	return text
}

// admitStranger is a token bucket.
func (a *Audit) admitStranger(now time.Time) bool {
	if earned := int(now.Sub(a.refilled) / strangerInterval); earned > 0 {
		a.tokens = min(strangerBurst, a.tokens+earned)
		a.refilled = now
	}
	if a.tokens == 0 {
		return false
	}
	a.tokens--
	return true
}

func (a *Audit) write(r auditRecord) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding an audit record: %w", err)
	}
	line = append(line, '\n')
	if a.written > 0 && a.written+int64(len(line)) > a.size {
		if err := a.rotate(); err != nil {
			return err
		}
	}
	if a.file == nil {
		if err := a.open(); err != nil {
			return err
		}
	}
	n, err := a.file.Write(line)
	a.written += int64(n)
	if err != nil {
		return fmt.Errorf("writing %s: %w", a.path, err)
	}
	return nil
}

// rotate puts the file aside as PATH.1, which was put aside before as PATH.2, and
// so on.
func (a *Audit) rotate() error {
	aside := func(n int) string {
		if n == 0 {
			return a.path
		}
		return fmt.Sprintf("%s.%d", a.path, n)
	}
	for n := auditKept; n > 0; n-- {
		if err := os.Rename(aside(n-1), aside(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("putting the audit file aside: %w", err)
		}
	}
	if a.file != nil {
		if err := a.file.Close(); err != nil {
			return fmt.Errorf("putting the audit file aside: %w", err)
		}
		a.file = nil
	}
	return a.open()
}
