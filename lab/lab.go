package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/pod"
)

// RunDir holds sockets, mounts and the note of what is up. It is fixed: one
// lab can be up at a time, and the paths of unix sockets must stay short.
const RunDir = "/run/podd-lab"

// DefaultDir holds the daemons' state and logs.
const DefaultDir = "/var/lib/podd-lab"

// place is where on the machine the lab is: RunDir, DefaultDir, and what the
// names of its network namespaces and cgroups begin with. Only tests have
// another one, so that they don't meet a lab somebody uses.
var place = struct{ run, dir, prefix string }{RunDir, DefaultDir, "podd-lab-"}

// The addresses of a lab.
var (
	PublicPrefix  = netip.MustParsePrefix("198.18.0.0/16")
	VirtualPrefix = netip.MustParsePrefix("100.64.0.0/16")
)

// Zone is the DNS zone of a lab's pods.
const Zone = "pods.internal"

// The hosts a lab can have.
const (
	MinHosts     = 2
	MaxHosts     = 8
	DefaultHosts = 3
)

var (
	// ErrUp means that a lab is up already, whole or in part. It wraps
	// pod.ErrExists.
	ErrUp = fmt.Errorf("%w: a lab is already up", pod.ErrExists)
	// ErrNone means that no lab is up. It wraps pod.ErrNotFound.
	ErrNone = fmt.Errorf("%w: no lab is up; podctl lab up makes one", pod.ErrNotFound)
)

// Options say what lab to make. The zero value makes three hosts.
type Options struct {
	// Hosts is their number, MinHosts to MaxHosts; 0 means DefaultHosts.
	Hosts int
	// LinkRate limits every link, each way, as tc(8) writes rates:
	// "100mbit", "1gbit". Empty means no limit.
	LinkRate string
	// Dir keeps state and logs; empty means DefaultDir. It must not exist.
	Dir string
	// BinDir has podd, podproxy and podinit; empty means where the running
	// program is.
	BinDir string
	// LogLevel is the daemons'; empty means info.
	LogLevel string
	// DirectoryInMemory puts the state of the proxy, which has the directory,
	// on a tmpfs: every change is synced there, and a disk that takes seconds
	// for that, as when others write much, makes calls fail. It outlives the
	// daemons, not the machine.
	DirectoryInMemory bool
	// Log is told of every step; nil means nothing is.
	Log *slog.Logger
}

// Lab is a lab that is up. It is safe for concurrent use.
type Lab struct {
	config
	log *slog.Logger
	// directoryInMemory is of Options.
	directoryInMemory bool
	// children are waited for, or they would stay zombies of this process.
	children sync.WaitGroup
}

// config is what is noted in RunDir.
type config struct {
	Hosts     int       `json:"hosts"`
	LinkRate  string    `json:"linkRate,omitempty"`
	Dir       string    `json:"dir"`
	BinDir    string    `json:"binDir"`
	LogLevel  string    `json:"logLevel"`
	CreatedAt time.Time `json:"createdAt"`
	// Built is true when the network was complete.
	Built bool `json:"built"`
	// OwnNetnsDir is true when it was this lab that made netnsDir a mount.
	OwnNetnsDir bool `json:"ownNetnsDir"`
}

func configPath() string { return filepath.Join(place.run, "lab.json") }

// Up makes a lab and returns when every daemon is ready. If that fails, or ctx
// ends first, nothing is left and the error has the last lines of the log of
// the daemon to blame. It wraps ErrUp when one is up, pod.ErrInvalid when the
// options are wrong.
func Up(ctx context.Context, o Options) (*Lab, error) {
	l, err := newLab(o)
	if err != nil {
		return nil, err
	}
	if err := l.checkPrograms(); err != nil {
		return nil, err
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	if err := l.up(ctx); err != nil {
		err = fmt.Errorf("making the lab: %w", err)
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func newLab(o Options) (*Lab, error) {
	l := &Lab{log: o.Log, directoryInMemory: o.DirectoryInMemory, config: config{
		Hosts: o.Hosts, LinkRate: o.LinkRate, Dir: o.Dir, BinDir: o.BinDir, LogLevel: o.LogLevel,
		CreatedAt: time.Now().Truncate(time.Second),
	}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.Hosts == 0 {
		l.Hosts = DefaultHosts
	}
	if l.Hosts < MinHosts || l.Hosts > MaxHosts {
		return nil, fmt.Errorf("%w: a lab of %d hosts: want %d to %d", pod.ErrInvalid, l.Hosts, MinHosts, MaxHosts)
	}
	if _, err := parseRate(l.LinkRate); err != nil {
		return nil, err
	}
	if l.Dir == "" {
		l.Dir = place.dir
	}
	if !filepath.IsAbs(l.Dir) {
		return nil, fmt.Errorf("%w: directory %q: want an absolute path", pod.ErrInvalid, l.Dir)
	}
	l.Dir = filepath.Clean(l.Dir)
	if l.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("finding the daemons: %w", err)
		}
		l.BinDir = filepath.Dir(self)
	}
	if l.LogLevel == "" {
		l.LogLevel = "info"
	}
	return l, nil
}

func (l *Lab) checkPrograms() error {
	for _, name := range []string{"podd", "podproxy", "podinit"} {
		if _, err := os.Stat(filepath.Join(l.BinDir, name)); err != nil {
			return fmt.Errorf("%w: the lab's programs: %w", pod.ErrNotFound, err)
		}
	}
	return nil
}

// claim takes the one place a lab can have. That Mkdir fails for all but one
// is the lock.
func (l *Lab) claim() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: a lab needs root: it makes network namespaces; try sudo", fs.ErrPermission)
	}
	if _, err := os.Lstat(l.Dir); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return fmt.Errorf("looking at the lab's directory: %w", err)
		}
		return fmt.Errorf("%w, or %s was left by one: podctl lab down removes it", ErrUp, l.Dir)
	}
	if err := os.Mkdir(place.run, 0o755); errors.Is(err, fs.ErrExist) {
		if up, err := Load(); err == nil {
			return fmt.Errorf("%w: %d hosts, since %s: podctl lab down takes it down", ErrUp, up.Hosts, up.CreatedAt.Format(time.DateTime))
		}
		return fmt.Errorf("%w, or half made: podctl lab down clears it away", ErrUp)
	} else if err != nil {
		return fmt.Errorf("making the lab's run directory: %w", err)
	}
	return nil
}

// prepare makes everything but the daemons.
func (l *Lab) prepare() error {
	mounted, err := mountinfo.Mounted(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking at %s: %w", netnsDir, err)
	}
	l.OwnNetnsDir = !mounted
	if err := l.save(); err != nil {
		return err
	}
	// Not for others: pods of the image "host" see what every user of the
	// machine may see, and one host's pods are no business of another's.
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return fmt.Errorf("making the lab's directory: %w", err)
	}
	if err := os.MkdirAll(l.logDir(), 0o755); err != nil {
		return fmt.Errorf("making the lab's directory: %w", err)
	}
	if l.directoryInMemory {
		dir := l.StateDir(Proxy)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("making the directory's disk: %w", err)
		}
		if err := unix.Mount("podd-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mounting a tmpfs at %s: %w", dir, err)
		}
	}
	if err := l.buildNetwork(); err != nil {
		return err
	}
	l.Built = true
	if err := l.save(); err != nil {
		return err
	}
	l.log.Info("the lab's network is there", "hosts", l.Hosts)
	return nil
}

func (l *Lab) up(ctx context.Context) error {
	if err := l.prepare(); err != nil {
		return err
	}
	if err := l.makeCluster(); err != nil {
		return err
	}
	// The proxy has the directory, and admits the hosts.
	if err := l.Start(ctx, Proxy); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, host := range l.HostNames() {
		group.Go(func() error { return l.Start(ctx, host) })
	}
	return group.Wait()
}

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l.config, "", "  ")
	if err != nil {
		return fmt.Errorf("noting the lab: %w", err)
	}
	if err := renameio.WriteFile(configPath(), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("noting the lab: %w", err)
	}
	return nil
}

// Load returns the lab that is up. The error wraps ErrNone when there is none.
func Load() (*Lab, error) {
	l := &Lab{log: slog.New(slog.DiscardHandler)}
	data, err := os.ReadFile(configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the lab: %w", err)
	}
	if err := json.Unmarshal(data, &l.config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", configPath(), err)
	}
	return l, nil
}
