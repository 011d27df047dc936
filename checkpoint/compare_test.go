package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/zeebo/xxh3"
)

// TestMerge has the frozen process hold, page by page at random, what was sent ahead, something
// else, or nothing, and CRIU dump what is elsewhere, and now and then a page twice; the
// image must have all of it.
func TestMerge(t *testing.T) {
	const base, pages = 0x10000, 200
	for seed := range uint64(50) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var stream, says bytes.Buffer
			out := newFrameWriter(&stream)
			a := newAheadPages()
			content := func(i, version int) []byte { return pagesOf(1, byte(3*i+version)) }
			address := func(i int) uint64 { return base + uint64(i)*pageSize }
			p := &aheadProcess{image: task7, digests: map[uint64]xxh3.Uint128{}, compared: make(chan struct{})}
			a.processes = []*aheadProcess{p}
			send := func(i int) {
				if err := a.send(out, p, address(i), content(i, 0)); err != nil {
					t.Fatal(err)
				}
			}
			says.Write(frame{op: opOpen, image: task7}.append(nil))
			var want []byte
			stats := PageStats{Images: 2}
			criu := func(i, version int) {
				says.Write(frame{op: opAdd, flags: pagePresent, pages: 1, addr: address(i), image: task7}.append(nil))
				says.Write(content(i, version))
			}
			for i := range pages {
				sent := random.IntN(2) == 0
				if sent {
					send(i)
				}
				version := random.IntN(2)
				switch random.IntN(4) {
				case 0:
					continue
				case 1:
					criu(i, version)
				case 2:
					criu(i, version)
					a.compareRun(p, address(i), content(i, version))
				case 3:
					a.compareRun(p, address(i), content(i, version))
					if sent && version == 0 {
						stats.Ahead += pageSize
					}
				}
				want = append(want, content(i, version)...)
			}
			send(pages) // a page that is gone
			close(p.compared)
			says.Write(frame{op: opOpen, image: shmem9}.append(nil))
			says.Write(frame{op: opAdd, flags: pagePresent, pages: 1, addr: base, image: shmem9}.append(nil))
			says.Write(pagesOf(1, 'a'))
			says.Write(frame{op: opEndForce}.append(nil))
			stats.Bytes = int64(len(want)) + pageSize
			stats.Pages = stats.Bytes / pageSize

			got, err := (&pageServer{criu: &readOnly{&says}, out: out, header: headerSize, ahead: a}).run(t.Context())
			if err != nil || got != stats {
				t.Fatalf("%+v, %v; want %+v", got, err, stats)
			}
			dir := t.TempDir()
			got, err = receivePages(t.Context(), t, bufio.NewReader(&stream), dir, PageLimits{Bytes: (pages + 2) * pageSize, Images: 2})
			if err != nil || got != stats {
				t.Fatalf("%+v, %v; want %+v", got, err, stats)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "pages-65537.img")); err != nil || !bytes.Equal(b, want) {
				t.Errorf("the pages differ, %v", err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
				t.Errorf("%v, %v", entries, err)
			}
		})
	}
}

// TestMergeFails: nothing is passed on as whole that is not.
func TestMergeFails(t *testing.T) {
	refused := errors.New("no such page")
	for name, c := range map[string]struct {
		p    aheadProcess
		said uint64 // the image that CRIU dumps
		want error
	}{
		"not compared": {aheadProcess{image: task7, err: refused}, task7, refused},
		"not dumped":   {aheadProcess{image: task7, runs: []pageRun{{start: 0x10000, end: 0x11000}}}, shmem9, errNotDumped},
		"neither":      {aheadProcess{image: task7, err: refused}, shmem9, refused},
	} {
		c.p.compared = make(chan struct{})
		close(c.p.compared)
		says := frame{op: opOpen, image: c.said}.append(nil)
		says = frame{op: opEndForce}.append(says)
		var stream bytes.Buffer
		_, err := (&pageServer{criu: &readOnly{bytes.NewReader(says)}, out: newFrameWriter(&stream), header: headerSize, ahead: &aheadPages{processes: []*aheadProcess{&c.p}}}).run(t.Context())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One that is never compared must not be waited for.
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(refused)
	p := aheadProcess{image: task7, compared: make(chan struct{})}
	says := frame{op: opOpen, image: task7}.append(nil)
	if _, err := (&pageServer{criu: &readOnly{bytes.NewReader(says)}, out: newFrameWriter(&bytes.Buffer{}), header: headerSize, ahead: &aheadPages{processes: []*aheadProcess{&p}}}).run(ctx); !errors.Is(err, refused) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestLargeAhead sends more ahead than the receiver maps in one piece, in frames that its pieces
// don't begin with.
func TestLargeAhead(t *testing.T) {
	const pages, atOnce = 2*aheadPart/pageSize + 77, 60
	var stream bytes.Buffer
	content := make([]byte, pages*pageSize)
	for i := range content {
		content[i] = byte(i / pageSize * 7)
	}
	out := newFrameWriter(&stream)
	a, p := newAheadPages(), &aheadProcess{image: task7, digests: map[uint64]xxh3.Uint128{}}
	for i := 0; i < pages; i += atOnce {
		if err := a.send(out, p, uint64(0x10000+i*pageSize), content[i*pageSize:min(i+atOnce, pages)*pageSize]); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []frame{
		{op: opOpen, image: task7}, {op: opSame, flags: pagePresent, pages: pages, addr: 0x10000, image: task7}, {op: opClose},
	} {
		if err := out.write(f, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.flush(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	stats, err := receivePages(t.Context(), t, bufio.NewReader(&stream), dir, PageLimits{Bytes: pages * pageSize, Images: 1})
	if err != nil || stats.Ahead != pages*pageSize {
		t.Fatalf("%+v, %v", stats, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "pages-65537.img")); err != nil || !bytes.Equal(b, content) {
		t.Errorf("the pages differ, %v", err)
	}
}
