package checkpoint

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fown"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-opts"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/utsns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// words are an address as CRIU writes it.
func words(address string) []uint32 {
	var w []uint32
	for b := netip.MustParseAddr(address).AsSlice(); len(b) > 0; b = b[4:] {
		w = append(w, binary.NativeEndian.Uint32(b))
	}
	return w
}

func inetSocket(protocol uint32, source string, sourcePort uint32, destination string, destinationPort uint32) *skinet.InetSkEntry {
	zero := proto.Uint32(0)
	return &skinet.InetSkEntry{
		Id: zero, Ino: zero, Family: zero, Type: zero, Proto: proto.Uint32(protocol), State: proto.Uint32(1),
		SrcPort: proto.Uint32(sourcePort), DstPort: proto.Uint32(destinationPort), Flags: zero, Backlog: zero,
		SrcAddr: words(source), DstAddr: words(destination),
		Fown: &fown.FownEntry{Uid: zero, Euid: zero, Signum: zero, PidType: zero, Pid: zero},
		Opts: &skopts.SkOptsEntry{
			SoSndbuf: zero, SoRcvbuf: zero, SoSndTmoSec: proto.Uint64(0), SoSndTmoUsec: proto.Uint64(0),
			SoRcvTmoSec: proto.Uint64(0), SoRcvTmoUsec: proto.Uint64(0),
		},
	}
}

func imageMessage(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))), data...)
}

func TestRename(t *testing.T) {
	const old, other, client = "100.64.0.7", "100.64.0.9", "192.0.2.10"
	type socket struct {
		source      string
		sourcePort  uint32
		destination string
		destPort    uint32
	}
	tests := map[string]struct {
		protocol  uint32
		was, want socket
	}{
		"listener anywhere":     {unix.IPPROTO_TCP, socket{"0.0.0.0", 80, "0.0.0.0", 0}, socket{"0.0.0.0", 80, "0.0.0.0", 0}},
		"listener":              {unix.IPPROTO_TCP, socket{old, 80, "0.0.0.0", 0}, socket{other, 80, "0.0.0.0", 0}},
		"mapped listener":       {unix.IPPROTO_TCP, socket{"::ffff:" + old, 80, "::", 0}, socket{"::ffff:" + other, 80, "::", 0}},
		"connection":            {unix.IPPROTO_TCP, socket{old, 80, client, 4000}, socket{"0.0.0.0", 0, "0.0.0.0", 0}},
		"mapped connection":     {unix.IPPROTO_TCP, socket{"::ffff:" + old, 80, "::ffff:" + client, 4000}, socket{"::", 0, "::", 0}},
		"loopback":              {unix.IPPROTO_TCP, socket{"127.0.0.1", 80, "127.0.0.1", 4000}, socket{"127.0.0.1", 80, "127.0.0.1", 4000}},
		"loopback of version 6": {unix.IPPROTO_TCP, socket{"::1", 80, "::1", 4000}, socket{"::1", 80, "::1", 4000}},
		"itself":                {unix.IPPROTO_TCP, socket{old, 80, old, 4000}, socket{other, 80, other, 4000}},
		"datagrams":             {unix.IPPROTO_UDP, socket{old, 5000, client, 53}, socket{other, 5000, client, 53}},
	}
	dir := t.TempDir()
	files, uts := make([]byte, imageHeader), make([]byte, imageHeader)
	var names []string
	for name, test := range tests {
		names = append(names, name)
		s := inetSocket(test.protocol, test.was.source, test.was.sourcePort, test.was.destination, test.was.destPort)
		files = append(files, imageMessage(t, &criufiles.FileEntry{Type: criufiles.FdTypes_INETSK.Enum(), Id: proto.Uint32(1), Isk: s})...)
		files = append(files, imageMessage(t, &criufiles.FileEntry{Type: criufiles.FdTypes_REG.Enum(), Id: proto.Uint32(2)})...)
	}
	uts = append(uts, imageMessage(t, &utsns.UtsnsEntry{Nodename: proto.String("alice"), Domainname: proto.String("(none)")})...)
	for name, data := range map[string][]byte{"files.img": files, "utsns-11.img": uts} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := Rename(dir, Renaming{Hostname: "copy", From: netip.MustParseAddr(old), To: netip.MustParseAddr(other)})
	if err != nil {
		t.Fatal(err)
	}
	err = rewriteImage(filepath.Join(dir, "utsns-11.img"), func(m []byte) ([]byte, error) {
		entry := new(utsns.UtsnsEntry)
		if err := proto.Unmarshal(m, entry); err != nil || entry.GetNodename() != "copy" || entry.GetDomainname() != "(none)" {
			t.Errorf("the host name is %v (%v)", entry, err)
		}
		return m, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = rewriteImage(filepath.Join(dir, "files.img"), func(m []byte) ([]byte, error) {
		entry := new(criufiles.FileEntry)
		if err := proto.Unmarshal(m, entry); err != nil {
			t.Fatal(err)
		}
		if s := entry.GetIsk(); s != nil {
			want := tests[names[seen]].want
			if !slices.Equal(s.SrcAddr, words(want.source)) || !slices.Equal(s.DstAddr, words(want.destination)) ||
				s.GetSrcPort() != want.sourcePort || s.GetDstPort() != want.destPort {
				t.Errorf("%s: it became %v", names[seen], s)
			}
			seen++
		}
		return m, nil
	})
	if err != nil || seen != len(tests) {
		t.Errorf("%d sockets of %d are there (%v)", seen, len(tests), err)
	}
}

func FuzzRename(f *testing.F) {
	r := Renaming{Hostname: "copy", From: netip.MustParseAddr("100.64.0.7"), To: netip.MustParseAddr("100.64.0.9")}
	f.Add([]byte{})
	f.Add(make([]byte, imageHeader))
	f.Add(append(make([]byte, imageHeader), 255, 255, 255, 255, 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, change := range []func([]byte) ([]byte, error){r.file, r.uts} {
			if _, err := rewriteMessages(data, change); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v does not say that the image is to blame", err)
			}
		}
	})
}
