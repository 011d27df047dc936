package podd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/pod"
	"podd/version"
)

// The members of a checkpoint file, in order. Files are passes of package
// filesync, memory is the page stream and images the image stream of package
// checkpoint: what a move sends.
const (
	memberPod    = "pod"
	memberFiles  = "files"
	memberMemory = "memory"
	memberImages = "images"
)

// maxManifest bounds the member pod, in bytes: the command and environment of a
// process are at most 2 MiB, and some thousand mapped files are described.
const maxManifest = 16 << 20

// manifest is the member pod of a checkpoint file: what the directory knew of
// the pod.
type manifest struct {
	// Salt is random: nobody shall confirm a guess of this member by its
	// digest, which everybody can read.
	Salt []byte   `json:"salt"`
	Spec pod.Spec `json:"spec"`
	// Virtual and Public are the pod's addresses.
	Virtual netip.Addr `json:"virtual"`
	Public  netip.Addr `json:"public"`
	// Epoch is that of the incarnation in the file, TriedEpoch the highest one
	// that any move had been given.
	Epoch      pod.Epoch `json:"epoch"`
	TriedEpoch pod.Epoch `json:"triedEpoch,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	// MappedFiles are those of the image that processes have mapped.
	MappedFiles []mappedFile `json:"mappedFiles"`
}

type mappedFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Digest []byte `json:"digest"`
}

func (c *podCheckpoint) manifest() ([]byte, error) {
	m := manifest{
		Salt: make([]byte, 32), Spec: c.record.Spec, Virtual: c.record.Binding.Virtual, Public: c.record.Binding.Public,
		Epoch: c.record.Binding.Epoch, TriedEpoch: c.record.TriedEpoch, CreatedAt: c.record.CreatedAt,
	}
	rand.Read(m.Salt) // it does not fail
	m.Spec.ImageDigest = c.pod.container.Image().Digest
	for _, f := range c.mapped {
		m.MappedFiles = append(m.MappedFiles, mappedFile{f.GetPath(), f.GetSize(), f.GetDigest()})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("describing the pod: %w", err)
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("%w: the description of the pod has %d bytes", pod.ErrExhausted, len(data))
	}
	return data, nil
}

// measure digests everything that goes into the file.
func (c *podCheckpoint) measure() ([]archive.Source, error) {
	c.clock.begin(stageSeal)
	description, err := c.manifest()
	if err != nil {
		return nil, err
	}
	file := func(path string) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return os.Open(path) }
	}
	var sources []archive.Source
	for _, member := range []struct {
		name string
		open func() (io.ReadCloser, error)
	}{
		{memberPod, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(description)), nil }},
		{memberFiles, file(c.filesPath())},
		{memberMemory, file(c.memoryPath())},
		{memberImages, file(c.imagesPath())},
	} {
		source, err := archive.Measure(member.name, member.open)
		if err != nil {
			return nil, err
		}
		sources = append(sources, source)
	}
	return sources, nil
}

// header is the clear part of the file.
func (c *podCheckpoint) header(ctx context.Context) (archive.Header, error) {
	host, err := c.d.dir.Host(ctx, c.d.Name)
	if err != nil {
		return archive.Header{}, err
	}
	flags, err := cpuFlags()
	if err != nil {
		return archive.Header{}, err
	}
	return archive.Header{
		ID: c.id, Pod: c.record.Name(), Epoch: c.record.Binding.Epoch, Host: c.d.Name, CreatedAt: c.createdAt,
		LeftRunning: c.order.GetLeaveRunning(), Kernel: host.Kernel, CPU: host.CPU, CPUFlags: flags,
		CRIU: c.d.engine.Version(), Version: version.String(),
		Image: c.record.Spec.Image, ImageDigest: c.pod.container.Image().Digest, Recipients: c.recipients,
	}, nil
}

// write sends the file.
func (c *podCheckpoint) write(ctx context.Context, sources []archive.Source) error {
	header, err := c.header(ctx)
	if err != nil {
		return err
	}
	c.clock.begin(pod.StageTransfer)
	store := c.d.cluster.Store
	w := bufio.NewWriterSize(&fileSender{c: c, ctx: ctx}, sendChunk)
	if err := archive.Write(w, header, sources, archive.Signer{Key: store.Key(), Chain: store.Chain()}, c.keys...); err != nil {
		return err
	}
	return w.Flush()
}

// fileSender makes messages of what is written to it.
type fileSender struct {
	c   *podCheckpoint
	ctx context.Context
}

func (s *fileSender) Write(p []byte) (int, error) {
	message := &poddv1.CheckpointPodResponse{Id: s.c.id, Stage: string(pod.StageTransfer), Data: bytes.Clone(p)}
	if err := s.c.send(s.ctx, message); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send waits until there is room for a message, but not for ever: a pod may be
// frozen meanwhile.
func (c *podCheckpoint) send(ctx context.Context, message *poddv1.CheckpointPodResponse) error {
	timer := time.NewTimer(sendStall)
	defer timer.Stop()
	select {
	case c.out <- message:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%w: nothing of the file was taken for %s", pod.ErrUnavailable, sendStall)
	}
}
