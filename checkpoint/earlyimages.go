package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// earlyImages sends images in the page stream while CRIU still writes others: of hundreds,
// most are about one process each, and written when that has been looked at. An image is complete
// when CRIU has closed it, of which inotify(7) tells. Should CRIU write it again, inotify
// tells that, too, and it is sent once more at the end.
type earlyImages struct {
	root  *os.Root
	watch int // inotify
	out   *frameWriter
	// sent are the images that the target has, with their sizes.
	sent map[string]int64
	// waiting says that some may still be in a buffer.
	waiting bool
	// stop ends the sending. Then done is closed, and err says why it ended before.
	stop chan struct{}
	done chan struct{}
	err  error

	stopping sync.Once
}

const (
	// eventSize is that of a struct inotify_event without the name.
	eventSize = unix.SizeofInotifyEvent
	// earlyInterval is how often it is looked for complete images. Whoever waits for them is woken
	// up by CRIU at each, and that in its way: on its processor.
	earlyInterval = 5 * time.Millisecond
)

// sendEarly begins to send the images that CRIU writes to dir from now on.
func sendEarly(dir string, out *frameWriter) (*earlyImages, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("watching the images: %w", err)
	}
	e := &earlyImages{root: root, out: out, sent: map[string]int64{}, stop: make(chan struct{}), done: make(chan struct{})}
	if e.watch, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		root.Close()
		return nil, fmt.Errorf("watching the images: %w", err)
	}
	if _, err = unix.InotifyAddWatch(e.watch, dir, unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err != nil {
		root.Close()
		unix.Close(e.watch)
		return nil, fmt.Errorf("watching the images in %s: %w", dir, err)
	}
	go func() {
		defer close(e.done)
		e.err = e.run()
	}()
	return e, nil
}

func (e *earlyImages) run() error {
	tick := time.NewTicker(earlyInterval)
	defer tick.Stop()
	for {
		select {
		case <-e.stop:
			return nil
		case <-tick.C:
		}
		err := e.eachClosed(e.send)
		if err == nil && e.waiting {
			err, e.waiting = e.out.push(), false
		}
		if err != nil {
			return err
		}
	}
}

// send sends an image, unless it is large, or can't be read: then it is sent at the end, or
// known there why not.
func (e *earlyImages) send(name string) error {
	if _, again := e.sent[name]; again {
		// The target would have to forget what it knows of it; that is not worth it.
		delete(e.sent, name)
		return nil
	}
	content, err := readSmallImage(e.root, name)
	if err != nil || content == nil {
		return nil
	}
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	if err := passError(writeImageFrame(e.out.out, 0, name, content)); err != nil {
		return err
	}
	e.sent[name], e.waiting = int64(len(content)), true
	return nil
}

// end ends it before the end of the page stream. The error is why images could not be
// sent.
func (e *earlyImages) end() error {
	e.stopping.Do(func() { close(e.stop) })
	<-e.done
	return e.err
}

// current returns the images that were sent and have not changed since. All are complete, and
// nothing is sent any more.
func (e *earlyImages) current() (map[string]int64, error) {
	err := e.eachClosed(func(name string) error {
		delete(e.sent, name)
		return nil
	})
	return e.sent, err
}

// eachClosed calls f for the images that were closed since it was called last.
func (e *earlyImages) eachClosed(f func(name string) error) error {
	events := make([]byte, 16<<10)
	for {
		n, err := unix.Read(e.watch, events)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return fmt.Errorf("watching the images: %w", err)
		}
		names, overflow := closedImages(events[:n])
		if overflow {
			clear(e.sent) // any of them may have changed
		}
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

func (e *earlyImages) close() error {
	return errors.Join(e.end(), e.root.Close(), unix.Close(e.watch))
}

// closedImages finds the names of images in events of inotify. overflow says that the kernel has
// dropped some.
func closedImages(events []byte) (names []string, overflow bool) {
	for len(events) >= eventSize {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := eventSize + int(binary.NativeEndian.Uint32(events[12:]))
		overflow = overflow || mask&unix.IN_Q_OVERFLOW != 0
		name, _, _ := bytes.Cut(events[eventSize:size], []byte{0})
		if mask&unix.IN_CLOSE_WRITE != 0 && imageName.Match(name) {
			names = append(names, string(name))
		}
		events = events[size:]
	}
	return names, overflow
}
