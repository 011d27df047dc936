package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"google.golang.org/protobuf/proto"
)

// rearmTimers mends what CRIU 4.2 gets wrong about periodic timerfds. While an
// expiration is unread, which after a freeze it nearly always is, the kernel
// gives the time to the next one as 0; CRIU writes that down and restores it,
// which disarms the timer for good (criu/timerfd.c). An event loop with such a
// timer would tick once after a move and never again. So a timer with an
// interval and no next expiration gets the interval as its next expiration.
func rearmTimers(imagesDir string) error {
	name := filepath.Join(imagesDir, "files.img")
	image, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the restore will say what is missing
	}
	if err != nil {
		return fmt.Errorf("reading the image's timers: %w", err)
	}
	mended, changed, err := rearm(image)
	if err != nil {
		return fmt.Errorf("reading the image's timers: %s: %w", name, err)
	}
	if !changed {
		return nil
	}
	if err := os.WriteFile(name, mended, 0o600); err != nil {
		return fmt.Errorf("writing the image's timers: %w", err)
	}
	return nil
}

// imageHeader is the size of the two magic numbers that begin an image file.
const imageHeader = 8

// rearm rewrites a files.img: the header, then each FileEntry after its size as
// a little-endian u32.
func rearm(image []byte) (mended []byte, changed bool, err error) {
	if len(image) < imageHeader {
		return nil, false, fmt.Errorf("%w: it has %d bytes", ErrCorrupt, len(image))
	}
	mended, rest := append(mended, image[:imageHeader]...), image[imageHeader:]
	for len(rest) > 0 {
		if len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return nil, false, fmt.Errorf("%w: it ends in the middle of an entry", ErrCorrupt)
		}
		size := int(binary.LittleEndian.Uint32(rest))
		message := rest[4 : 4+size]
		rest = rest[4+size:]
		entry := new(criufiles.FileEntry)
		if err := proto.Unmarshal(message, entry); err != nil {
			return nil, false, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		timer := entry.GetTfd()
		if timer != nil && timer.GetVsec() == 0 && timer.GetVnsec() == 0 && (timer.GetIsec() != 0 || timer.GetInsec() != 0) {
			timer.Vsec, timer.Vnsec = proto.Uint64(timer.GetIsec()), proto.Uint64(timer.GetInsec())
			changed = true
			if message, err = proto.Marshal(entry); err != nil {
				return nil, false, err
			}
		}
		mended = binary.LittleEndian.AppendUint32(mended, uint32(len(message)))
		mended = append(mended, message...)
	}
	return mended, changed, nil
}
