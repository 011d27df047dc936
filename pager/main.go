package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	optionsName = "pager.json"
	lockName    = "lock"
	logName     = "log"

	// maxThreads is how many threads of a pager run Go code at a time: the
	// handler, the connection, and one that podd asks. That may be more than there are
	// processors: none is to wait until Go takes a turn away, which it does after 10 ms.
	maxThreads = 3
	// farewell is how long the source may take to be told that nothing more is
	// needed.
	farewell = 3 * time.Second
)

// Main is the pager: "podd pager DIR". It returns the process's exit status once
// the memory is complete.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if len(args) != 1 {
		log.Error("a pager is started by podd")
		return 2
	}
	runtime.GOMAXPROCS(maxThreads)
	if err := serve(args[0], log); err != nil {
		log.Error("the pager ends", "error", err)
		return 1
	}
	return 0
}

func readOptions(dir string) (Options, error) {
	var o Options
	b, err := os.ReadFile(filepath.Join(dir, optionsName))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		return o, fmt.Errorf("reading the pager's options: %w", err)
	}
	return o, nil
}

// serve fills the memory that dir tells of.
func serve(dir string, log *slog.Logger) error {
	o, err := readOptions(dir)
	if err != nil {
		return err
	}
	if err := takeDirectory(dir); err != nil {
		return err
	}
	m, err := openMeta(dir)
	if err != nil {
		return err
	}
	if m.get().Final != nil {
		return nil
	}
	h, err := takeOver(dir, o, log, m)
	if errors.Is(err, errLost) {
		return errors.Join(err, giveUp(m, freezer(o.FreezerDir), err))
	}
	if err != nil {
		return err
	}
	listener, err := listen(dir)
	if err != nil {
		return err
	}
	defer listener.Close()
	return run(o, log, h, listener)
}

// takeDirectory makes this the only pager of the directory. One that begins later
// ends it, at whatever it is.
func takeDirectory(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	defer lock.Close() // before there is a keeper, who would keep it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	return killPagers(dir)
}

// takeOver goes on where the last pager was, or begins.
func takeOver(dir string, o Options, log *slog.Logger, m *metaFile) (*handler, error) {
	last := *m.get()
	// A pager that died before it had written its keeper down left that behind.
	if err := killKeepers(dir, last.Keeper); err != nil {
		return nil, err
	}
	c, err := openContent(dir, o.MaxBytes)
	if err != nil {
		return nil, err
	}
	h, err := newHandler(dir, log, c, m, freezer(o.FreezerDir))
	if err != nil {
		return nil, err
	}
	if err := h.recover(last.Generation, last.Keeper); err != nil {
		return nil, err
	}
	keeper, err := startKeeper()
	if err != nil {
		return nil, err
	}
	me, err := findProcess(os.Getpid())
	if err != nil {
		return nil, errors.Join(err, keeper.kill())
	}
	if err := m.change(func(m *meta) { m.Generation, m.Pager, m.Keeper = last.Generation+1, me, keeper }); err != nil {
		return nil, errors.Join(err, keeper.kill())
	}
	return h, last.Keeper.kill()
}

// giveUp freezes the pod for good.
func giveUp(m *metaFile, f freezer, cause error) error {
	return errors.Join(
		m.freeze(f, cause.Error()),
		m.change(func(m *meta) { m.Lost = cause.Error() }),
	)
}

// run serves until the memory is complete.
func run(o Options, log *slog.Logger, h *handler, listener *net.UnixListener) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := newLink(o, log, h.content, h.meta, h.poke)
	h.want = l.want
	h.poke() // for what is there already
	server := &server{h: h, l: l, log: log}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { server.run(listener) })
	defer listener.Close()
	linked := make(chan error, 1)
	wg.Go(func() {
		err := l.run(ctx)
		if err != nil {
			log.Error("the source's part has ended", "error", err)
			server.fail(err)
		}
		linked <- err
	})
	err := h.run()
	if err != nil {
		cancel()
		if errors.Is(err, errExtents) {
			return errors.Join(err, giveUp(h.meta, h.freezer, err))
		}
		return err
	}
	l.abandon()
	status := server.status()
	status.State = StateComplete
	log.Info("the memory is complete", "filled", status.Filled, "faults", status.Faults, "worst", status.WorstFault)
	err = errors.Join(
		h.meta.thaw(h.freezer, stalledCause), // the processes that needed it are gone
		h.meta.thaw(h.freezer, crowdedCause),
		h.removeFiles(),
		h.meta.change(func(m *meta) { m.Final = &status }),
		killKeepers(o.Dir, process{}),
	)
	server.close()
	select {
	case <-linked:
	case <-time.After(farewell):
	}
	return err
}
