package podd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"podd/checkpoint"
	"podd/pager"
	"podd/sharedmem"
)

// openPager starts the pager for a pod that comes here, if the source carries its
// memory. unable says why it can't.
func (m *targetMove) openPager(ctx context.Context) (unable string, err error) {
	if err := m.d.unableToTake(); err != nil {
		return err.Error(), nil
	}
	source, err := m.d.dir.Host(ctx, m.move.Source)
	if err != nil {
		return "", err
	}
	executable, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding podd's program: %w", err)
	}
	dir := m.d.imagesOf(memoryImages, m.move.Pod, m.move.Next.Epoch)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making a directory for memory: %w", err)
	}
	options := pager.Options{
		Dir: dir, Executable: executable, FreezerDir: m.container.FreezerDir(), StateDir: m.d.StateDir,
		Source: source.Name, Addresses: []string{source.API.String()}, Path: memoryPath + "?move=" + m.move.ID,
		RevokedFile: m.d.revokedFile(), Log: m.log,
	}
	if limits := m.pageLimits(); limits.Bytes != math.MaxInt64 {
		options.MaxBytes = limits.Bytes
	}
	if m.pager, err = pager.Start(ctx, options); err != nil {
		return "", fmt.Errorf("starting the pager: %w", err)
	}
	return "", nil
}

// revokedFile is where pagers find which certificates are revoked.
func (d *Daemon) revokedFile() string { return filepath.Join(d.RunDir, "revoked.json") }

// tellRevoked tells pagers which certificates are revoked, as long as podd runs: a
// host that is turned out is not to fill anybody's memory.
func (d *Daemon) tellRevoked(ctx context.Context) {
	for revoked := range d.dir.WatchRevoked(ctx) {
		if err := pager.WriteRevoked(d.revokedFile(), revoked); err != nil {
			d.log.Error("pagers may go on trusting who was turned out", "error", err)
		}
	}
}

// unableToTake is why memory can't be filled in here after a restore, nil if it
// can.
func (d *Daemon) unableToTake() error { return d.engine.CanRestoreLazily() }

// lazy is what CRIU gives userfaultfds to; nil if all memory is in its images.
func lazy(p *pager.Pager) func(pid int, uffd *os.File) error {
	if p == nil {
		return nil
	}
	return func(pid int, uffd *os.File) error {
		ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
		defer cancel()
		return errors.Join(p.Attach(ctx, pid, uffd), uffd.Close())
	}
}

// attachTimeout bounds how long a pager may take to take a process.
const attachTimeout = 10 * time.Second

// verifyMemory sees to it, before the commit, that the pager can give the restored
// pod every page of it that CRIU has not.
func (m *targetMove) verifyMemory(ctx context.Context) error {
	if m.pager == nil {
		return nil
	}
	if err := m.pager.Verify(ctx, m.complete); err != nil {
		return err
	}
	return nil
}

// openShared makes ready for shared memory that podd carries itself, and reports
// whether it may come.
func (m *targetMove) openShared() (bool, error) {
	if m.d.engine.CanLeaveOut() != nil {
		return false, nil // nobody would give it to CRIU
	}
	executable, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("finding podd's program: %w", err)
	}
	m.shared = sharedmem.NewKeeper(sharedmem.KeeperOptions{
		Dir: m.images, Executable: executable, JoinCgroup: m.container.JoinCgroup, MaxBytes: m.pageLimits().Bytes,
	})
	return true, nil
}

// receivePages takes the memory that comes by the conversation of the move. For free see
// checkpoint.ReceivePages.
func (m *targetMove) receivePages(ctx context.Context) (free func() error, err error) {
	if m.shared == nil {
		_, free, err = checkpoint.ReceivePages(ctx, m.conn, m.images, m.pageLimits(), nil, m.received)
		return free, err
	}
	defer m.shared.Close() // its process goes on
	stats, free, err := checkpoint.ReceivePages(ctx, m.conn, m.images, m.pageLimits(), m.shared, m.received)
	m.log.Debug("pages have come", "pages", stats.Pages, "shared-segments", stats.Segments, "shared", m.shared.Bytes())
	return free, err
}

// endMemory undoes openPager; the restored processes are gone.
func (m *targetMove) endMemory() {
	if m.pager == nil {
		return
	}
	if err := m.d.endPager(m.pager, m.d.imagesOf(memoryImages, m.move.Pod, m.move.Next.Epoch)); err != nil {
		m.log.Error("ending the pager failed", "error", err)
	}
	m.pager = nil
}
