package pager

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// close lets go of the files; a pager ends instead.
func (c *content) close() {
	unix.Munmap(c.states)
	unix.Munmap(c.table)
	c.file.Close()
}

// FuzzContent lets a source say anything that is a frame. What it is believed must
// add up, after a restart too.
func FuzzContent(f *testing.F) {
	encode := func(frames ...pagesync.Frame) []byte {
		var b bytes.Buffer
		w := pagesync.NewWriter(&b)
		for _, frame := range frames {
			if err := w.Write(frame); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	regions := []pagesync.Region{{PID: 1, Start: at, End: at + 40*pageSize}, {PID: 2, Start: 1 << 30, End: 2 << 30}}
	f.Add(encode(pagesync.Frame{Kind: pagesync.KindRegions, Regions: regions}, frame(pagesync.KindData, at, 2, 1, 2),
		pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: regions}, frame(pagesync.KindSame, at, 1),
		frame(pagesync.KindAbsent, at+pageSize, 30), frame(pagesync.KindZero, at+35*pageSize, 5),
		pagesync.Frame{Kind: pagesync.KindAbsent, PID: 2, Address: 1 << 30, Pages: windowPages}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		c := newContent(t, 64*pageSize)
		defer c.close()
		r := pagesync.NewReader(bytes.NewReader(stream))
		for {
			frame, err := r.Next()
			if err != nil {
				break
			}
			switch frame.Kind {
			case pagesync.KindRegions:
				pages := 0
				for _, r := range frame.Regions {
					pages += r.Pages()
				}
				if pages > windowPages+1000 {
					return // it takes long to look at
				}
				err = c.announce(frame.Regions, frame.Flags&pagesync.FlagFinal != 0)
			case pagesync.KindData, pagesync.KindZero, pagesync.KindSame, pagesync.KindAbsent:
				err = c.put(frame)
			}
			if err != nil {
				break // the connection ends
			}
		}
		if !c.final {
			return
		}
		again, err := openContent(c.dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer again.close()
		if again.unsaid != c.unsaid || again.data != c.data || c.unsaid < 0 {
			t.Errorf("%d pages are missing and %d have data; after a restart %d and %d", c.unsaid, c.data, again.unsaid, again.data)
		}
		n := int64(0)
		for region, address := 0, uint64(0); ; {
			var a arrival
			if a, region, address = c.nextUnsaid(region, address, 1<<20); a.pages == 0 {
				break
			}
			n += int64(a.pages)
		}
		if n != c.unsaid {
			t.Errorf("%d pages are asked for, %d are missing", n, c.unsaid)
		}
	})
}
