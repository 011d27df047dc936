package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/bench/report"
	"podd/bench/workload"
	"podd/lab"
)

var movePart = part{"move", "Moves between two hosts in different subnets, with a client that has a live connection", runMove}

// The contenders. Other names of podd are those of strategies.
const (
	podd   = "podd"
	runc   = "runc"
	podman = "podman"
	criu   = "criu"
)

// The works that bars are about.
const (
	small       = "64 MiB idle"
	processes   = "100 processes, 64 MiB"
	desktop     = "desktop"
	fullDesktop = "full desktop"
	large       = "2 GiB mostly idle, 1 Gbit/s"
)

// gigabit is the rate of slow links.
const gigabit = "1gbit"

// mover makes the trips of the part.
type mover struct {
	*bench
	server string
	// root is a root file system with the server only.
	root string
	// images are on a tmpfs here.
	images string
	// strategy is podctl move's flag for the default contender, if it has it.
	strategy []string
	links    int
}

func runMove(ctx context.Context, b *bench) error {
	if err := peer.Adopt(); err != nil {
		return err
	}
	b.moveFigures()
	b.moveCharts()
	m := &mover{bench: b, root: filepath.Join(b.dir, "root"), images: filepath.Join(b.dir, "images")}
	for _, dir := range []string{m.root, m.images} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making directories: %w", err)
		}
	}
	if err := unix.Mount("images", m.images, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"); err != nil {
		return fmt.Errorf("mounting a tmpfs for images: %w", err)
	}
	var err error
	if m.server, err = workload.Build(ctx, m.root); err != nil {
		return err
	}
	for _, group := range []struct {
		rate  string
		works func(context.Context) error
	}{
		{"", m.unlimited}, {gigabit, m.limited},
	} {
		if _, err := b.labUp(ctx, lab.Options{Hosts: 2, LinkRate: group.rate}); err != nil {
			return err
		}
		has, err := b.strategies(ctx)
		if err != nil {
			return err
		}
		if m.strategy = nil; has {
			m.strategy = []string{"--strategy", "auto"}
		}
		if err := group.works(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) moveFigures() {
	b.figure(silence, "ms", "the longest time that the client got no answer, though it asked every millisecond")
	b.figure(freeze, "ms", "the longest time that the program did not run, by its own clock")
	b.figure(excision, "ms", "from the freeze to the complete image on the target; of peers, checkpoint and copy")
	b.figure(insertion, "ms", "from there until it runs; of peers, restore")
	b.figure(total, "ms", "from the command to its end")
	b.figure(sent, "B", "what crossed the source's link during the move; of peers, the size of the images")
	b.figure(resident, "B", "the memory that the program had in use")
	b.rank("less", silence, freeze, excision, insertion, total, sent)
	key := func(work, by, figure string) measure.Key {
		return measure.Key{Work: work, Contender: by, Figure: figure}
	}
	b.bar(report.Bar{Name: "silence, 64 MiB idle server: podd / runc", Of: key(small, podd, silence), Against: key(small, runc, silence), Limit: 0.20})
	b.bar(report.Bar{Name: "silence, 64 MiB idle server", Of: key(small, podd, silence), Limit: 100, Unit: "ms"})
	b.bar(report.Bar{Name: "silence, 2 GiB over 1 Gbit/s / 64 MiB", Of: key(large, podd, silence), Against: key(small, podd, silence), Limit: 1.5})
	b.bar(report.Bar{Name: "silence, 100 processes / 1", Of: key(processes, podd, silence), Against: key(small, podd, silence), Limit: 2})
	b.bar(report.Bar{Name: "silence, minimal Xvnc desktop: podd / runc", Of: key(desktop, podd, silence), Against: key(desktop, runc, silence), Limit: 0.20})
	b.bar(report.Bar{Name: "silence, full desktop: podd / runc", Of: key(fullDesktop, podd, silence), Against: key(fullDesktop, runc, silence), Limit: 0.12})
	b.bar(report.Bar{Name: "freeze to resume, 64 MiB: podd / raw CRIU", Of: key(small, podd, freeze), Against: key(small, criu, freeze), Limit: 0.7})
	b.bar(report.Bar{Name: "bytes sent, 2 GiB mostly idle / resident", Of: key(large, podd, sent), Against: key(large, podd, resident), Limit: 1.15})
}

// moveCharts registers the pictures.
func (b *bench) moveCharts() {
	by := []string{podd, runc, podman, criu}
	b.chart(report.Chart{
		File: "move-silence", Title: "Longest silence on a live connection during a move", Figure: silence, LogY: true,
		Works: []string{small, processes, desktop, fullDesktop, large}, Contenders: by,
	})
	b.chart(report.Chart{
		File: "move-freeze", Title: "Longest time that a server did not run", Figure: freeze, LogY: true,
		Works: []string{small, processes, large}, Contenders: by,
	})
	b.chart(report.Chart{
		File: "move-memory", Title: "Longest silence of an idle server by its memory", Figure: silence, LogX: true, LogY: true,
		Works: []string{"1 MiB idle", small, "512 MiB idle", "2 GiB idle"}, X: []float64{1, 64, 512, 2048}, XLabel: "memory [MiB]", Contenders: by,
	})
	b.chart(report.Chart{
		File: "move-dirtying", Title: "Longest silence of a server that writes 50 MiB a second", Figure: silence, LogX: true, LogY: true,
		Works: []string{dirtying(1), dirtying(64), dirtying(512), dirtying(2048)}, X: []float64{1, 64, 512, 2048}, XLabel: "memory [MiB]",
		Contenders: append(by, podd+" stop-copy", podd+" pre-copy", podd+" post-copy"),
	})
}

// serverArgs are the server's arguments.
func (m *mover) serverArgs(mebibytes, rate, processes int) []string {
	return []string{"/server", "-m", fmt.Sprint(mebibytes), "-d", fmt.Sprint(rate), "-n", fmt.Sprint(processes)}
}

// podServer is a trip of the server in a pod; flags are podctl move's.
func (m *mover) podServer(name string, args []string, flags ...string) *trip {
	return &trip{
		vehicle:   &byPodd{bench: m.bench, name: name, args: append([]string{"--image", "dir:" + m.root, "--"}, args...), flags: flags},
		passenger: &counting{}, lab: m.lab,
	}
}

// peerServer is a trip of the server with runc, podman or CRIU alone.
func (m *mover) peerServer(by string, args []string) *trip {
	m.links++
	c := peer.Container{Name: by, Args: args, Root: m.root, Writable: true}
	v := &byPeer{bench: m.bench, number: m.links, name: by}
	v.make = func(k *peer.Link, _ hostRoot) container {
		switch by {
		case runc:
			return &peer.Runc{Program: m.runc(), Container: c, Link: k, Dir: m.dir, Images: m.images}
		case podman:
			return &peer.Podman{Runtime: m.runc(), Container: c, Link: k, Dir: m.dir, Images: m.images}
		}
		return cycle{&peer.CRIU{Args: append([]string{m.server}, args[1:]...), Link: k, Images: filepath.Join(m.images, "criu")}}
	}
	return &trip{vehicle: v, passenger: &counting{}, lab: m.lab}
}

// podmanEvery is in how many rounds podman is measured once: it takes seconds,
// and no bar is about it.
const podmanEvery = 5

// servers is an entry for each of several contenders with the same server.
func (m *mover) servers(args []string, contenders ...string) []entry {
	var entries []entry
	for _, by := range contenders {
		if by == podd {
			entries = append(entries, entry{by: by, trip: m.podServer("server", args, m.strategy...)})
			continue
		}
		e := entry{by: by, trip: m.peerServer(by, args)}
		if by == podman {
			e.every = podmanEvery
		}
		entries = append(entries, e)
	}
	return entries
}

// The works that only -full asks for have fewer repetitions, for they take long.
const fullRepetitions = 5

// dirtyRate is in MiB a second.
const dirtyRate = 50

// unlimited are the works over links without a limit.
func (m *mover) unlimited(ctx context.Context) error {
	entries := append(m.servers(m.serverArgs(64, 0, 1), podd, runc, podman, criu),
		entry{by: podd, work: processes, trip: m.podServer("processes", m.serverArgs(64, 0, 100), m.strategy...)})
	if err := m.trips(ctx, small, m.repetitions, entries...); err != nil {
		return err
	}
	for _, s := range desktops() {
		if err := m.moveDesktop(ctx, s, m.repetitions); err != nil {
			return err
		}
	}
	if !m.full {
		return nil
	}
	for _, size := range []int{1, 512, 2048} {
		if err := m.trips(ctx, sized(size)+" idle", m.times(size), m.servers(m.serverArgs(size, 0, 1), podd, runc, podman, criu)...); err != nil {
			return err
		}
	}
	for _, size := range []int{1, 64, 512, 2048} {
		entries := append(m.servers(m.serverArgs(size, dirtyRate, 1), podd, runc), m.byStrategies(m.serverArgs(size, dirtyRate, 1))...)
		if err := m.trips(ctx, dirtying(size), m.times(size), entries...); err != nil {
			return err
		}
	}
	if err := m.trips(ctx, "64 MiB idle, each strategy", m.repetitions, m.byStrategies(m.serverArgs(64, 0, 1))...); err != nil {
		return err
	}
	if err := m.trips(ctx, "10 processes, 64 MiB", m.repetitions, m.servers(m.serverArgs(64, 0, 10), podd, runc, criu)...); err != nil {
		return err
	}
	if err := m.trips(ctx, "100 processes, 64 MiB, side by side", m.repetitions, m.servers(m.serverArgs(64, 0, 100), podd, runc, criu)...); err != nil {
		return err
	}
	return m.moveRedis(ctx, m.times(1024))
}

// limited are those over 1 Gbit/s.
func (m *mover) limited(ctx context.Context) error {
	entries := m.servers(m.serverArgs(2048, 1, 1), podd)
	for i := range entries {
		entries[i].cold = true // 17 s
	}
	if err := m.trips(ctx, large, m.repetitions, entries...); err != nil || !m.full {
		return err
	}
	for _, size := range []int{64, 512} {
		if err := m.trips(ctx, sized(size)+" idle, 1 Gbit/s", m.times(size), m.servers(m.serverArgs(size, 0, 1), podd, runc)...); err != nil {
			return err
		}
	}
	return m.trips(ctx, dirtying(512)+", 1 Gbit/s", m.times(512), append(m.servers(m.serverArgs(512, dirtyRate, 1), podd, runc), m.byStrategies(m.serverArgs(512, dirtyRate, 1))...)...)
}

// times is how often a work with so many MiB is repeated.
func (m *mover) times(mebibytes int) int {
	if mebibytes > 64 {
		return min(m.repetitions, fullRepetitions)
	}
	return m.repetitions
}

// byStrategies are pods that are moved by each strategy in turn, if podctl can
// be told one.
func (m *mover) byStrategies(args []string) []entry {
	if m.strategy == nil {
		return nil
	}
	var entries []entry
	for _, s := range []string{"stop-copy", "pre-copy", "post-copy", "checkpoint-server"} {
		entries = append(entries, entry{by: podd + " " + s, trip: m.podServer(s, args, "--strategy", s)})
	}
	return entries
}

// dirtying names the work of a server that changes its memory.
func dirtying(mebibytes int) string {
	return fmt.Sprintf("%s dirtying %d MiB/s", sized(mebibytes), dirtyRate)
}

// sized writes a number of MiB as works do.
func sized(mebibytes int) string {
	if mebibytes >= 1024 {
		return fmt.Sprintf("%d GiB", mebibytes/1024)
	}
	return fmt.Sprintf("%d MiB", mebibytes)
}
