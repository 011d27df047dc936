package podd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	poddv1 "podd/api/podd/v1"
	"podd/namespace"
	"podd/namespace/image"
	"podd/pod"
)

type imageService struct{ d *Daemon }

func (s *imageService) toProto(i image.Image) *poddv1.Image {
	out := &poddv1.Image{Name: i.Name, Digest: i.Digest, Size: i.Size, Layers: int32(len(i.Layers)), Host: s.d.Name}
	if !i.CreatedAt.IsZero() {
		out.CreatedAt = timestamppb.New(i.CreatedAt)
	}
	return out
}

// ImportImage collects the stream in a file, because archives are read more
// than once.
func (s *imageService) ImportImage(ctx context.Context, stream *connect.ClientStream[poddv1.ImportImageRequest]) (*connect.Response[poddv1.ImportImageResponse], error) {
	if !stream.Receive() {
		return nil, errors.Join(fmt.Errorf("%w: no image was sent", pod.ErrInvalid), stream.Err())
	}
	header := stream.Msg().GetHeader()
	if header == nil {
		return nil, fmt.Errorf("%w: the stream does not begin with a header", pod.ErrInvalid)
	}
	archive, err := os.CreateTemp(s.d.StateDir, "import-*.tar")
	if err != nil {
		return nil, fmt.Errorf("receiving an image: %w", err)
	}
	defer os.Remove(archive.Name())
	defer archive.Close()
	for stream.Receive() {
		if _, err := archive.Write(stream.Msg().GetData()); err != nil {
			return nil, fmt.Errorf("receiving an image: %w", err)
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("receiving an image: %w", err)
	}
	imported, err := s.d.images.Import(ctx, archive.Name(), image.ImportOptions{Name: header.GetName()})
	if err != nil {
		return nil, err
	}
	s.d.log.Info("image imported", "image", imported.Name, "digest", imported.Digest)
	return connect.NewResponse(&poddv1.ImportImageResponse{Image: s.toProto(imported)}), nil
}

func (s *imageService) ListImages(context.Context, *connect.Request[poddv1.ListImagesRequest]) (*connect.Response[poddv1.ListImagesResponse], error) {
	response := &poddv1.ListImagesResponse{}
	for _, i := range s.d.images.List() {
		response.Images = append(response.Images, s.toProto(i))
	}
	return connect.NewResponse(response), nil
}

func (s *imageService) RemoveImage(ctx context.Context, r *connect.Request[poddv1.RemoveImageRequest]) (*connect.Response[poddv1.RemoveImageResponse], error) {
	if err := s.d.images.Remove(ctx, r.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.RemoveImageResponse{}), nil
}

// imagesInUse tells the store which images pods of this host need: from digest
// to the names of the pods.
func (d *Daemon) imagesInUse() (map[string][]string, error) {
	containers, err := d.runtime.List()
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, c := range containers {
		if digest := c.Image().Digest; digest != "" {
			users[digest] = append(users[digest], c.Name())
		}
	}
	return users, nil
}

// imageLayers finds the layers of a pod's image on this host. The error wraps
// pod.ErrNotFound when it is not here.
func (d *Daemon) imageLayers(spec pod.Spec) ([]string, error) {
	name := spec.Image
	if spec.ImageDigest != "" {
		name = spec.ImageDigest
	}
	img, err := d.images.Resolve(name)
	if err != nil {
		return nil, err
	}
	return namespace.Layers(img), nil
}
