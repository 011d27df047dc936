package checkpoint

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/utsns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Renaming is how a copy of a pod differs from the original.
type Renaming struct {
	// Hostname is the copy's host name.
	Hostname string
	// From is the original's address and To the copy's; the same if it is kept.
	From, To netip.Addr
}

// Rename gives the image in imagesDir another host name and address. Sockets
// that are bound to the address are bound to the new one; connections with the
// pod itself, also over loopback, live on; those with anybody else, who has
// them with the original, are closed: their programs find unconnected sockets.
// CRIU's own way, tcp-close, would close all connections.
func Rename(imagesDir string, r Renaming) error {
	names, err := filepath.Glob(filepath.Join(imagesDir, "utsns-*.img"))
	if err != nil {
		return fmt.Errorf("renaming the image: %w", err)
	}
	for _, name := range names {
		if err := rewriteImage(name, r.uts); err != nil {
			return fmt.Errorf("renaming the image: %w", err)
		}
	}
	if r.From == r.To {
		return nil
	}
	if err := rewriteImage(filepath.Join(imagesDir, "files.img"), r.file); err != nil {
		return fmt.Errorf("renaming the image: %w", err)
	}
	return nil
}

// rewriteImage passes each message of an image file through change. The file is
// a header and then messages, each after its size as a little-endian u32.
func rewriteImage(name string, change func(message []byte) ([]byte, error)) error {
	image, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	changed, err := rewriteMessages(image, change)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, changed, 0o600)
}

func rewriteMessages(image []byte, change func(message []byte) ([]byte, error)) ([]byte, error) {
	if len(image) < imageHeader {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrCorrupt, len(image))
	}
	out, rest := slices.Clone(image[:imageHeader]), image[imageHeader:]
	for len(rest) > 0 {
		if len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return nil, fmt.Errorf("%w: it ends in the middle of an entry", ErrCorrupt)
		}
		size := int(binary.LittleEndian.Uint32(rest))
		message, err := change(rest[4 : 4+size])
		if err != nil {
			return nil, err
		}
		rest = rest[4+size:]
		out = binary.LittleEndian.AppendUint32(out, uint32(len(message)))
		out = append(out, message...)
	}
	return out, nil
}

func (r Renaming) uts(message []byte) ([]byte, error) {
	entry := new(utsns.UtsnsEntry)
	if err := proto.Unmarshal(message, entry); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	entry.Nodename = proto.String(r.Hostname)
	return proto.Marshal(entry)
}

func (r Renaming) file(message []byte) ([]byte, error) {
	entry := new(criufiles.FileEntry)
	if err := proto.Unmarshal(message, entry); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	socket := entry.GetIsk()
	if socket == nil {
		return message, nil
	}
	r.socket(socket)
	return proto.Marshal(entry)
}

// closed is the kernel's TCP_CLOSE (include/net/tcp_states.h).
const closed = 7

func (r Renaming) socket(s *skinet.InetSkEntry) {
	// CRIU takes a TCP socket with a remote port for a connection
	// (tcp_connection in criu/sk-inet.c).
	if s.GetProto() == unix.IPPROTO_TCP && s.GetDstPort() != 0 && !(r.own(s.SrcAddr) && r.own(s.DstAddr)) {
		clear(s.SrcAddr)
		clear(s.DstAddr)
		s.SrcPort, s.DstPort, s.State, s.Shutdown = proto.Uint32(0), proto.Uint32(0), proto.Uint32(closed), nil
		return
	}
	r.translate(s.SrcAddr)
	r.translate(s.DstAddr)
}

// own reports whether a socket's address is the pod's.
func (r Renaming) own(words []uint32) bool {
	a := socketAddr(words)
	return a.IsLoopback() || a == r.From
}

// translate puts the new address in the place of the old.
func (r Renaming) translate(words []uint32) {
	if socketAddr(words) != r.From {
		return
	}
	to := r.To.As4()
	words[len(words)-1] = binary.NativeEndian.Uint32(to[:]) // in ::ffff:a.b.c.d it is the last
}

// socketAddr is a socket's address: CRIU writes down the words of the kernel's
// structures, which are in network byte order. Invalid if it is none.
func socketAddr(words []uint32) netip.Addr {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}
