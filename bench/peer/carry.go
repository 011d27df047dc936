package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"podd/lab"
)

// carry copies the files of a directory to another one, over the network of a
// lab: on one plain connection, by sendfile(2), with nothing encrypted. It
// returns the number of bytes.
func carry(ctx context.Context, l *lab.Lab, from, to, source, target string) (int64, error) {
	listener, err := l.Listen(ctx, to, "tcp", net.JoinHostPort(l.Address(to).String(), "0"))
	if err != nil {
		return 0, fmt.Errorf("copying to host %s: %w", to, err)
	}
	defer listener.Close()
	received := make(chan error, 1)
	go func() { received <- receiveFiles(listener, target) }()
	conn, err := l.Dial(ctx, from, "tcp", listener.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("copying from host %s: %w", from, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close(); listener.Close() })
	defer stop()
	n, err := sendFiles(conn, source)
	if err := errors.Join(err, conn.Close(), <-received); err != nil {
		return n, fmt.Errorf("copying %s from host %s to host %s: %w", source, from, to, err)
	}
	return n, nil
}

// header is what comes before a file's content.
type header struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

func sendFiles(conn net.Conn, dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		head, err := json.Marshal(header{name, info.Size()})
		if err != nil {
			return err
		}
		if _, err := conn.Write(append(head, '\n')); err != nil {
			return err
		}
		n, err := io.CopyN(conn, f, info.Size())
		sum += n
		return err
	})
	return sum, err
}

func receiveFiles(listener net.Listener, dir string) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		head, err := readHeader(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(head.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, conn, head.Size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// readHeader reads a line and no byte more, so that the content goes straight
// from the socket to the file.
func readHeader(r io.Reader) (h header, err error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, b); err != nil {
			return h, err
		}
		if b[0] == '\n' {
			return h, json.Unmarshal(line, &h)
		}
		if line = append(line, b[0]); len(line) > 4096 {
			return h, errors.New("a header is too long")
		}
	}
}
