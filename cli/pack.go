package cli

import (
	"archive/tar"
	"io"
	"os"
)

// packed is a directory's content as a tar stream.
type packed struct {
	*io.PipeReader
	done chan struct{}
}

// packDirectory packs a directory while it is read. An OCI layout holds only
// regular files and directories; anything else is an error.
func packDirectory(dir string) io.ReadCloser {
	reader, writer := io.Pipe()
	p := packed{reader, make(chan struct{})}
	go func() {
		defer close(p.done)
		archive := tar.NewWriter(writer)
		err := archive.AddFS(os.DirFS(dir))
		if err == nil {
			err = archive.Close()
		}
		writer.CloseWithError(err)
	}()
	return p
}

// Close ends the packing and waits for it.
func (p packed) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}
