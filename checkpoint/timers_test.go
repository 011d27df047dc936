package checkpoint

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

// timerImage is a files.img with one timerfd for each pair of next expiration
// and interval, in nanoseconds, and a file entry of another type in between.
func timerImage(t *testing.T, timers ...[2]uint64) []byte {
	t.Helper()
	image := make([]byte, imageHeader)
	add := func(entry *criufiles.FileEntry) {
		message, err := proto.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		image = binary.LittleEndian.AppendUint32(image, uint32(len(message)))
		image = append(image, message...)
	}
	for i, timer := range timers {
		id := proto.Uint32(uint32(i + 1))
		add(&criufiles.FileEntry{Type: criufiles.FdTypes_REG.Enum(), Id: proto.Uint32(100)})
		add(&criufiles.FileEntry{Type: criufiles.FdTypes_TIMERFD.Enum(), Id: id, Tfd: &timerfd.TimerfdEntry{
			Id: id, Flags: proto.Uint32(0), Clockid: proto.Uint32(1), Ticks: proto.Uint64(1), SettimeFlags: proto.Uint32(0),
			Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
			Vsec: proto.Uint64(0), Vnsec: proto.Uint64(timer[0]), Isec: proto.Uint64(0), Insec: proto.Uint64(timer[1]),
		}})
	}
	return image
}

func TestRearm(t *testing.T) {
	const expired, armed, oneShot = 20_000_000, 3_000_000, 0
	image := timerImage(t, [2]uint64{0, expired}, [2]uint64{armed, expired}, [2]uint64{0, oneShot})
	mended, changed, err := rearm(image)
	if err != nil || !changed {
		t.Fatalf("changed %v, error %v", changed, err)
	}
	want := timerImage(t, [2]uint64{expired, expired}, [2]uint64{armed, expired}, [2]uint64{0, oneShot})
	if string(mended) != string(want) {
		t.Errorf("got  %x\nwant %x", mended, want)
	}
	if _, changed, err := rearm(want); err != nil || changed {
		t.Errorf("a second time: changed %v, error %v", changed, err)
	}
}

func TestRearmDamaged(t *testing.T) {
	whole := timerImage(t, [2]uint64{0, 5})
	for size := range whole {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "files.img"), whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		// A cut between two entries can't be seen here.
		if err := rearmTimers(dir); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", size, len(whole), err)
		}
	}
	if err := rearmTimers(t.TempDir()); err != nil {
		t.Errorf("no files.img: %v", err)
	}
}
