package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

var (
	// ErrNoCRIU means there is no CRIU that can be run. The text says what to
	// install.
	ErrNoCRIU = errors.New("CRIU not found")
	// ErrTooOld means the CRIU found can't work with this package or with
	// the running kernel. The text says which version is needed.
	ErrTooOld = errors.New("CRIU too old")
)

// CRIU versions as MMmmss, and the kernel from which the newer is needed.
const (
	// minVersion: 4.1 is the oldest that restores on kernels after
	// mid-2025 and dumps pidfds.
	minVersion = 40100
	// minVersionPasscred is needed from kernel 6.16 on, which refuses
	// SO_PASSCRED on sockets other than unix ones: older versions fail on
	// every TCP socket.
	minVersionPasscred = 40200
)

// startTimeout bounds the questions that Open asks CRIU.
const startTimeout = 30 * time.Second

// Options configure an Engine.
type Options struct {
	// CRIUPath is the program to run. Empty means "criu" from PATH.
	CRIUPath string
	// Log receives what the engine does. Nil means nothing is logged.
	Log *slog.Logger
	// PageFilter is the library podd-pagefilter.so, for DumpOptions.LeaveOut.
	// Empty means that no memory can be left out.
	PageFilter string
	// Debug makes CRIU write everything it does to its log file. It costs
	// time while the pod is frozen.
	Debug bool
}

// Engine runs CRIU. It is safe for concurrent use.
type Engine struct {
	path       string
	version    int
	log        *slog.Logger
	debug      bool
	pageFilter string
	// canLeaveOut is tryFilter, called once.
	canLeaveOut func() error
	// canRestoreLazily is tryLazy, called once.
	canRestoreLazily func() error
	// outOfPlace is true when a restore in place has failed.
	outOfPlace atomic.Bool
}

// Open finds CRIU, asks its version and fills the cache of kernel features
// that makes its later starts faster. The error wraps ErrNoCRIU or ErrTooOld.
func Open(options Options) (*Engine, error) {
	e := &Engine{path: options.CRIUPath, log: options.Log, debug: options.Debug, pageFilter: options.PageFilter}
	e.canLeaveOut, e.canRestoreLazily = sync.OnceValue(e.tryFilter), sync.OnceValue(e.tryLazy)
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.path == "" {
		e.path = "criu"
	}
	path, err := exec.LookPath(e.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: install CRIU 4.2 or newer (Debian package criu) or name its path", ErrNoCRIU, err)
	}
	e.path = path
	if e.pageFilter != "" {
		if e.pageFilter, err = filepath.Abs(e.pageFilter); err != nil {
			return nil, fmt.Errorf("finding the page filter: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if e.version, err = e.askVersion(ctx); err != nil {
		return nil, fmt.Errorf("%w: %s does not answer: %w: install CRIU 4.2 or newer", ErrNoCRIU, path, err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("reading the kernel version: %w", err)
	}
	if err := checkVersion(e.version, unix.ByteSliceToString(name.Release[:])); err != nil {
		return nil, err
	}
	if err := e.prime(ctx); err != nil {
		// It only costs time later.
		e.log.Warn("priming CRIU's feature cache failed", "error", err)
	}
	return e, nil
}

// Version returns CRIU's version as MMmmss: 40201 is 4.2.1.
func (e *Engine) Version() int { return e.version }

// checkVersion reports whether CRIU of this version can work on the kernel
// of this release. The error wraps ErrTooOld.
func checkVersion(version int, kernel string) error {
	need := minVersion
	if atLeast(kernel, 6, 16) {
		need = minVersionPasscred
	}
	if version >= need {
		return nil
	}
	return fmt.Errorf("%w: version %s, but kernel %s needs %s or newer: install a newer criu (Debian sid has 4.2.1)",
		ErrTooOld, versionString(version), kernel, versionString(need))
}

func versionString(v int) string {
	return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100)
}

// atLeast compares the first two numbers of a kernel release such as
// "6.12.43+deb13-amd64". A release that can't be read counts as new.
func atLeast(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		second = rest[:i]
	}
	a, err1 := strconv.Atoi(first)
	b, err2 := strconv.Atoi(second)
	if err1 != nil || err2 != nil {
		return true
	}
	return a > major || a == major && b >= minor
}

func (e *Engine) askVersion(ctx context.Context) (int, error) {
	response, err := e.ask(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum()})
	if err != nil {
		return 0, err
	}
	v := response.GetVersion()
	return int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber())*100 + int(v.GetSublevel()), nil
}

// ask starts CRIU for one question that has one answer.
func (e *Engine) ask(ctx context.Context, request *rpc.CriuReq) (*rpc.CriuResp, error) {
	w, err := e.startWorker(workerOptions{log: e.log})
	if err != nil {
		return nil, err
	}
	defer w.stop()
	return w.ask(ctx, request)
}

// checkFeatures makes CRIU probe the kernel, which fills its cache.
func (e *Engine) checkFeatures(ctx context.Context) (*rpc.CriuFeatures, error) {
	response, err := e.ask(ctx, &rpc.CriuReq{
		Type:     rpc.CriuReqType_FEATURE_CHECK.Enum(),
		Features: &rpc.CriuFeatures{MemTrack: proto.Bool(true), LazyPages: proto.Bool(true)},
	})
	return response.GetFeatures(), err
}
