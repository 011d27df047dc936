package pagesync

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
)

// receiver does what the pager does with frames, and checks that they keep the
// rules. Where the pager may drop content it does.
type receiver struct {
	mu       sync.Mutex
	regions  []Region // of the last frame
	final    bool
	pages    map[pageKey][]byte // candidates and verified; nil is zeros
	verified map[pageKey]bool
	stats    map[Kind]int64 // pages
	done     bool
	// breakAfter ends a connection after so many frames that come after the final
	// regions; 0 is never.
	breakAfter int
}

type pageKey struct {
	pid     int
	address uint64
}

func newReceiver() *receiver {
	return &receiver{pages: make(map[pageKey][]byte), verified: make(map[pageKey]bool), stats: make(map[Kind]int64)}
}

func eachPage(r Region, f func(pageKey)) {
	for a := r.Start; a < r.End; a += PageSize {
		f(pageKey{r.PID, a})
	}
}

func (v *receiver) carried(k pageKey) bool {
	_, found := slices.BinarySearchFunc(v.regions, k, func(r Region, k pageKey) int {
		switch {
		case r.PID != k.pid:
			return r.PID - k.pid
		case r.End <= k.address:
			return -1
		case r.Start > k.address:
			return 1
		}
		return 0
	})
	return found
}

// missing returns the regions' pages that are not verified.
func (v *receiver) missing() []Region {
	var missing []Region
	for _, r := range v.regions {
		eachPage(r, func(k pageKey) {
			if v.verified[k] {
				return
			}
			if n := len(missing); n > 0 && missing[n-1].PID == k.pid && missing[n-1].End == k.address {
				missing[n-1].End += PageSize
			} else {
				missing = append(missing, Region{k.pid, k.address, k.address + PageSize})
			}
		})
	}
	return missing
}

// run serves one connection until it ends, nil if everything is there.
func (v *receiver) run(conn net.Conn, again bool, wants ...Region) error {
	defer conn.Close()
	r, w := NewReader(conn), NewWriter(conn)
	say := func(f Frame) error {
		if err := w.Write(f); err != nil {
			return err
		}
		return w.Flush()
	}
	hello := Frame{Kind: KindHello}
	if again {
		hello.Flags = FlagAgain
	}
	if err := say(hello); err != nil {
		return err
	}
	frames := 0
	ask := again
	if again && v.isFinal() {
		if err := v.askMissing(w); err != nil {
			return err
		}
		ask = false
	}
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		complete, err := v.take(f)
		if err != nil {
			return err
		}
		if f.Kind == KindMark {
			if err := say(Frame{Kind: KindAck, Number: f.Number}); err != nil {
				return err
			}
		}
		if f.Kind == KindRegions && v.isFinal() {
			if ask {
				if err := v.askMissing(w); err != nil {
					return err
				}
				ask = false
			}
			for _, want := range wants {
				if err := say(Frame{Kind: KindWant, Flags: FlagFault, PID: want.PID, Address: want.Start, Pages: want.Pages()}); err != nil {
					return err
				}
			}
		}
		if complete {
			return say(Frame{Kind: KindAck, Number: Done})
		}
		if v.isFinal() {
			if frames++; v.breakAfter > 0 && frames > v.breakAfter {
				return io.ErrClosedPipe
			}
		}
	}
}

func (v *receiver) isFinal() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.final
}

func (v *receiver) askMissing(w *Writer) error {
	v.mu.Lock()
	missing := v.missing()
	v.mu.Unlock()
	for _, m := range missing {
		if err := w.Write(Frame{Kind: KindWant, PID: m.PID, Address: m.Start, Pages: m.Pages()}); err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		if err := w.Write(Frame{Kind: KindAck, Number: Done}); err != nil {
			return err
		}
	}
	return w.Flush()
}

// take applies one frame and reports whether everything is there.
func (v *receiver) take(f Frame) (complete bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if f.Kind.pages() {
		v.stats[f.Kind] += int64(f.Pages)
	}
	set := func(k pageKey, content []byte) error {
		if !v.carried(k) {
			return fmt.Errorf("%v of %v, which is in no region", f.Kind, k)
		}
		if v.verified[k] && !bytes.Equal(v.pages[k], content) {
			return fmt.Errorf("%v was verified with other content", k)
		}
		v.pages[k] = content
		v.verified[k] = v.final
		return nil
	}
	switch f.Kind {
	case KindRegions:
		if v.final && !slices.Equal(v.regions, f.Regions) {
			return false, fmt.Errorf("final regions are other than they were")
		}
		v.regions = slices.Clone(f.Regions)
		v.final = v.final || f.Flags&FlagFinal != 0
		for k := range v.pages {
			if !v.carried(k) {
				delete(v.pages, k)
			}
		}
	case KindData:
		content := bytes.Clone(f.Payload)
		eachPage(f.Region(), func(k pageKey) {
			if e := set(k, content[:PageSize:PageSize]); e != nil {
				err = e
			}
			content = content[PageSize:]
		})
	case KindZero, KindAbsent:
		if f.Kind == KindAbsent && !v.final {
			return false, fmt.Errorf("absent before the final regions")
		}
		eachPage(f.Region(), func(k pageKey) {
			if e := set(k, nil); e != nil {
				err = e
			}
		})
	case KindSame:
		eachPage(f.Region(), func(k pageKey) {
			if _, ok := v.pages[k]; !ok || !v.final {
				err = fmt.Errorf("same for %v, of which nothing was sent", k)
			}
			v.verified[k] = true
		})
	case KindDone:
		v.done = true
		if missing := v.missing(); len(missing) > 0 {
			return false, fmt.Errorf("done, but nothing was said of %v", missing)
		}
	case KindMark:
	default:
		return false, fmt.Errorf("%v from the source", f.Kind)
	}
	// After a lost connection there is no done.
	complete = v.done && f.Kind == KindDone || v.breakAfter > 0 && f.Kind.pages() && v.final && len(v.missing()) == 0
	return complete, err
}
