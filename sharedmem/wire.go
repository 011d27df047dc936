package sharedmem

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// SocketName is the keeper's socket in the directory of the images; shared.c knows it.
const SocketName = "shared.socket"

// Operations; shared.c has the same numbers.
const (
	opCreate   = 1
	opAllocate = 2
	opDrop     = 3
	opGet      = 4
	opWho      = 5 // its pid
	opEnd      = 6
)

const (
	requestSize = 288
	answerSize  = 16
	nameSize    = 256
)

// request is what a keeper is asked; the package's documentation has the layout.
type request struct {
	op       uint32
	sealable bool
	id       uint64
	offset   int64
	length   int64
	name     string
}

func (r request) bytes() []byte {
	b := make([]byte, 0, requestSize)
	b = binary.NativeEndian.AppendUint32(b, r.op)
	flags := uint32(0)
	if r.sealable {
		flags = 1
	}
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint64(b, r.id)
	b = binary.NativeEndian.AppendUint64(b, uint64(r.offset))
	b = binary.NativeEndian.AppendUint64(b, uint64(r.length))
	b = append(b, r.name...)
	return b[:requestSize] // it was made of zeros
}

func parseRequest(b []byte) (request, error) {
	if len(b) != requestSize {
		return request{}, fmt.Errorf("a request of %d bytes", len(b))
	}
	name, _, _ := bytes.Cut(b[32:], []byte{0})
	return request{
		op:       binary.NativeEndian.Uint32(b),
		sealable: binary.NativeEndian.Uint32(b[4:]) == 1,
		id:       binary.NativeEndian.Uint64(b[8:]),
		offset:   int64(binary.NativeEndian.Uint64(b[16:])),
		length:   int64(binary.NativeEndian.Uint64(b[24:])),
		name:     string(name),
	}, nil
}

// errEnded means that the keeper has closed the connection.
var errEnded = errors.New("the keeper of shared memory has ended")

// ask asks a keeper. file is nil if none came.
func ask(conn *net.UnixConn, r request) (pid int, file *os.File, err error) {
	if _, err := conn.Write(r.bytes()); err != nil {
		return 0, nil, err
	}
	b, oob := make([]byte, answerSize), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if errors.Is(err, io.EOF) || err == nil && n != answerSize {
		return 0, nil, errEnded
	}
	if err != nil {
		return 0, nil, err
	}
	if file, err = netconn.PassedFile(oob[:oobn], "shared-memory"); err != nil {
		return 0, nil, err
	}
	if errno := unix.Errno(binary.NativeEndian.Uint64(b)); errno != 0 {
		return 0, file, errno
	}
	return int(binary.NativeEndian.Uint64(b[8:])), file, nil
}

// answer answers a request; fd is that of a segment, or negative.
func answer(conn *net.UnixConn, errno unix.Errno, fd int) error {
	b := binary.NativeEndian.AppendUint64(nil, uint64(errno))
	b = binary.NativeEndian.AppendUint64(b, uint64(os.Getpid()))
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	_, _, err := conn.WriteMsgUnix(b, oob, nil)
	return err
}

// connect reaches the keeper of a directory.
func connect(dir *os.File) (*net.UnixConn, error) {
	return netconn.DialIn(context.Background(), "unixpacket", dir, SocketName)
}
