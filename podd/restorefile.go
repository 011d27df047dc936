package podd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/daemon"
	"podd/pod"
)

// A checkpoint file that comes to be restored is hostile until all of it is
// verified. Its signature is verified before anything else of it is kept; then
// it is spooled, no more of it than was declared, as it is: encrypted. It is read
// once from end to end for the digests of its members, and only then is anything
// made of it, with a second reading that verifies them again.

// restoredFile is a checkpoint file that is verified.
type restoredFile struct {
	spool    *os.File
	envelope *archive.Envelope
	manifest *manifest
}

// RestorePod makes a pod from a checkpoint file.
func (s *podService) RestorePod(ctx context.Context, stream *connect.ClientStream[poddv1.RestorePodRequest]) (*connect.Response[poddv1.RestorePodResponse], error) {
	if !stream.Receive() {
		return nil, errors.Join(fmt.Errorf("%w: no checkpoint file was sent", pod.ErrInvalid), stream.Err())
	}
	header := stream.Msg().GetHeader()
	if header == nil {
		return nil, fmt.Errorf("%w: the stream does not begin with a header", pod.ErrInvalid)
	}
	// What was received is the daemon's: it is not to be half a pod.
	s.d.tasks.Add(1)
	defer s.d.tasks.Done()
	file, err := s.d.receiveFile(ctx, &messageReader{stream: stream})
	if err != nil {
		return nil, err
	}
	defer file.close(s.d)
	restored, err := s.d.restoreFile(ctx, header, file)
	if err != nil {
		s.d.log.Warn("restoring a pod from a checkpoint file fails", "pod", file.envelope.Header.Pod, "checkpoint", file.envelope.Header.ID, "error", err)
		return nil, err
	}
	return connect.NewResponse(&poddv1.RestorePodResponse{Pod: api.PodToProto(restored)}), nil
}

// messageReader reads the data of a stream of messages.
type messageReader struct {
	stream *connect.ClientStream[poddv1.RestorePodRequest]
	rest   []byte
}

func (r *messageReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		if r.rest = r.stream.Msg().GetData(); r.stream.Msg().GetHeader() != nil {
			return 0, fmt.Errorf("%w: a second header", pod.ErrInvalid)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// receiveFile spools a checkpoint file and verifies everything that can be
// verified without regard to this host. On an error nothing is left.
func (d *Daemon) receiveFile(ctx context.Context, r io.Reader) (_ *restoredFile, err error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	f := &restoredFile{}
	if f.envelope, err = archive.ReadEnvelope(buffered); err != nil {
		return nil, err
	}
	if err := f.envelope.Verify(d.verifySigner(ctx, f.envelope.Header.Host)); err != nil {
		return nil, err
	}
	// Before it has to travel.
	if err := d.checkHeader(&f.envelope.Header); err != nil {
		return nil, err
	}
	if f.spool, err = os.CreateTemp(d.spoolDir(), "restore-*"); err != nil {
		return nil, fmt.Errorf("spooling a checkpoint file: %w", err)
	}
	defer func() {
		if err != nil {
			f.close(d)
		}
	}()
	limit := f.envelope.Header.MaxBody()
	n, err := io.Copy(&spaceWriter{w: f.spool, dir: d.spoolDir()}, io.LimitReader(buffered, limit+1))
	if err != nil {
		return nil, fmt.Errorf("spooling a checkpoint file: %w", err)
	}
	if n > limit {
		return nil, fmt.Errorf("%w: it is larger than it says", archive.ErrFormat)
	}
	if err := d.readFile(f); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *restoredFile) close(d *Daemon) {
	if err := errors.Join(f.spool.Close(), os.Remove(f.spool.Name())); err != nil {
		d.log.Error("removing a spooled checkpoint file failed", "error", err)
	}
}

// spaceInterval is after how many bytes it is looked how much space is left.
const spaceInterval = 64 << 20

// spaceWriter fails before a disk is full: others need it too.
type spaceWriter struct {
	w     io.Writer
	dir   string
	until int64
}

func (s *spaceWriter) Write(p []byte) (int, error) {
	if s.until -= int64(len(p)); s.until <= 0 {
		var fs unix.Statfs_t
		if err := unix.Statfs(s.dir, &fs); err != nil {
			return 0, fmt.Errorf("looking at the space in %s: %w", s.dir, err)
		}
		if int64(fs.Bavail)*fs.Bsize < spaceReserve+spaceInterval {
			return 0, fmt.Errorf("%w: no space is left in %s", pod.ErrExhausted, s.dir)
		}
		s.until = spaceInterval
	}
	return s.w.Write(p)
}

// readFile reads a spooled file from end to end: when it returns nil all of it
// is what its signer wrote, and the description of the pod has been read.
func (d *Daemon) readFile(f *restoredFile) error {
	members, err := d.openFile(f)
	if err != nil {
		return err
	}
	defer members.Close()
	names := []string{memberPod, memberFiles, memberMemory, memberImages}
	for i := 0; ; i++ {
		member, content, err := members.Next()
		if err == io.EOF && i == len(names) {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		if i >= len(names) || err == io.EOF || member.Name != names[i] {
			return fmt.Errorf("%w: its members are not those of a pod", archive.ErrFormat)
		}
		if member.Name == memberPod {
			if f.manifest, err = readManifest(content, &f.envelope.Header); err != nil {
				return err
			}
		}
	}
}

// openFile begins to read the members.
func (d *Daemon) openFile(f *restoredFile) (*archive.Reader, error) {
	if _, err := f.spool.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading a spooled checkpoint file: %w", err)
	}
	secret := d.cluster.Store.Secret()
	if secret == nil {
		return nil, fmt.Errorf("%w: host %s does not have the cluster's key for files", pod.ErrUnavailable, d.Name)
	}
	members, err := f.envelope.Open(bufio.NewReaderSize(f.spool, 256<<10), secret)
	if errors.Is(err, archive.ErrRecipient) {
		return nil, fmt.Errorf("%w: the file is encrypted, but not to this cluster: podctl restore --identity FILE decrypts it with your key", pod.ErrDenied)
	}
	return members, err
}

// readManifest reads the member pod.
func readManifest(r io.Reader, header *archive.Header) (*manifest, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	m := new(manifest)
	if len(data) > maxManifest {
		return nil, fmt.Errorf("%w: a description of more than %d bytes", archive.ErrFormat, maxManifest)
	}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w: the description of the pod: %w", archive.ErrFormat, err)
	}
	if err := m.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("%w: the description of the pod: %w", archive.ErrFormat, err)
	}
	if m.Spec.Name != header.Pod || m.Epoch != header.Epoch || m.Epoch == 0 || !m.Virtual.Is4() || m.CreatedAt.IsZero() {
		return nil, fmt.Errorf("%w: the description of the pod is not that of the header", archive.ErrFormat)
	}
	return m, nil
}

// restoreFile makes a pod from a file that is verified.
func (d *Daemon) restoreFile(ctx context.Context, header *poddv1.RestorePodHeader, file *restoredFile) (*pod.Pod, error) {
	caller, ok := daemon.CallerFrom(ctx)
	if !ok {
		return nil, fmt.Errorf("%w: a restore without a caller", pod.ErrUnknownCaller)
	}
	spec := file.manifest.Spec
	if err := daemon.PermitSpec(caller, spec); err != nil {
		return nil, err
	}
	if header.GetName() != "" {
		spec.Name = header.GetName()
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := d.checkFile(ctx, spec, file); err != nil {
		return nil, err
	}
	r := &fileRestore{d: d, log: d.log.With("pod", spec.Name, "checkpoint", file.envelope.Header.ID), file: file, spec: spec, newIdentity: header.GetForceNewIdentity()}
	return r.run(ctx)
}
