package checkpoint

import (
	"fmt"
	"io"
	"os"
)

// In a move, images are in frames like those of the page stream (pagewire.go): early ones stand
// between its others, and those that are left follow it in an image section, which opClose ends with
// the number of all images. A connection with a host that is known needs no digests, and
// nothing has to be known of all images before the first is sent.
//
// An image is in one opImage of at most smallImage bytes; a larger one goes on in further ones, which have the
// flag imageMore. Early ones may come again: the last counts.
const imageMore = 1

// writeImageFrame writes an image or a part of it.
func writeImageFrame(w io.Writer, flags uint32, name string, content []byte) error {
	head := frame{op: opImage, flags: flags, pages: uint64(len(content)), addr: uint64(len(name))}.append(make([]byte, 0, headerSize+len(name)))
	if _, err := w.Write(append(head, name...)); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// readSmallImage reads an image of at most smallImage bytes; of a larger one it returns nil.
func readSmallImage(root *os.Root, name string) ([]byte, error) {
	file, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() > smallImage {
		return nil, err
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(file, content); err != nil {
		return nil, fmt.Errorf("%s: %w", name, noEOF(err))
	}
	return content, nil
}

// sendImageFrames writes an image section. Images that were sent early count, and are not
// sent.
func sendImageFrames(w io.Writer, root *os.Root, early map[string]int64) (ImageStats, error) {
	var stats ImageStats
	names, err := imageNames(root.Name())
	if err != nil {
		return stats, err
	}
	for _, name := range names {
		size, sent := early[name]
		if !sent {
			if size, err = sendImage(w, root, name); err != nil {
				return stats, err
			}
		}
		stats.Files++
		stats.Bytes += size
	}
	_, err = w.Write(frame{op: opClose, pages: uint64(stats.Files)}.append(nil))
	return stats, err
}

func sendImage(w io.Writer, root *os.Root, name string) (size int64, err error) {
	content, err := readSmallImage(root, name)
	if err != nil {
		return 0, err
	}
	if content != nil {
		return int64(len(content)), writeImageFrame(w, 0, name, content)
	}
	file, err := root.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	content = make([]byte, smallImage)
	for flags := uint32(0); ; flags = imageMore {
		n, err := io.ReadFull(file, content)
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return size, err
		}
		if n > 0 || flags == 0 {
			if err := writeImageFrame(w, flags, name, content[:n]); err != nil {
				return size, err
			}
		}
		if size += int64(n); n < len(content) {
			return size, nil
		}
	}
}
