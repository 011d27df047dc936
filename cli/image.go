package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// importChunk is how many bytes of an image go into one message.
const importChunk = 256 << 10

var imageListing = listing[imageView]{
	name: func(v imageView) string { return v.Name },
	columns: []column[imageView]{
		{title: "NAME", text: func(v imageView) string { return v.Name }},
		{title: "HOST", text: func(v imageView) string { return v.Host }},
		{title: "DIGEST", text: func(v imageView) string { return shortDigest(v.Digest) }},
		{title: "LAYERS", text: func(v imageView) string { return fmt.Sprint(v.Layers) }},
		{title: "SIZE", text: func(v imageView) string { return formatBytes(v.SizeBytes) }},
		{title: "CREATED", text: func(v imageView) string { return age(v.CreatedAt) }},
		{title: "FULL DIGEST", text: func(v imageView) string { return v.Digest }, wide: true},
	},
}

func (p *podctl) imageCommand() *command {
	const hint = "podctl image ls lists the images, podctl host ls the hosts"
	hostFlag := func() cli.Flag {
		return &cli.StringFlag{Name: "host", Usage: "images of `HOST` (default: the podd that is asked)"}
	}
	return &command{
		name: "image", category: "Hosts and images", usage: "the images that pods are made from",
		description: `Images are kept by each host. A pod can be moved to a host that has the same
image.`,
		examples: []string{"podctl image import debian debian.tar", "podctl image ls"},
		subcommands: []*command{
			{
				name: "import", args: "NAME FILE|DIR|-", min: 2, max: 2, notFound: hint,
				completes: []completer{completeNothing, completeFiles},
				usage:     "import an image",
				description: `Imports an OCI layout (a directory or a tar of it) or an archive that docker
save or podman save wrote, from a file or standard input (-), and names it NAME.`,
				examples: []string{
					"podctl image import debian debian.tar",
					"podman save debian:13 | podctl image import --host b debian -",
				},
				flags:  []cli.Flag{hostFlag(), outputFlag()},
				action: p.imageImport,
			},
			{
				name: "ls", aliases: []string{"list"}, usage: "list images", notFound: hint,
				description: "Lists the images of a host.",
				examples:    []string{"podctl image ls", "podctl image ls --host b -o wide"},
				flags:       []cli.Flag{hostFlag(), outputFlag()},
				action:      p.imageList,
			},
			{
				name: "rm", aliases: []string{"remove"}, args: "NAME...", min: 1, max: unlimited, notFound: hint,
				completes:   []completer{completeImages},
				usage:       "remove images",
				description: "Removes images that no pod of the host uses.",
				examples:    []string{"podctl image rm debian"},
				flags:       []cli.Flag{hostFlag()},
				action: func(c *cli.Context) error {
					return p.forEach(c, "removing image", func(ctx context.Context, client *client, name string) error {
						request := &poddv1.RemoveImageRequest{Host: c.String("host"), Name: name}
						_, err := client.images.RemoveImage(ctx, connect.NewRequest(request))
						return err
					})
				},
			},
		},
	}
}

func (p *podctl) imageList(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.images.ListImages(c.Context, connect.NewRequest(&poddv1.ListImagesRequest{Host: c.String("host")}))
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	var images []imageView
	for _, message := range response.Msg.GetImages() {
		images = append(images, viewImage(message))
	}
	slices.SortFunc(images, func(a, b imageView) int {
		return strings.Compare(a.Name+" "+a.Host, b.Name+" "+b.Host)
	})
	return imageListing.print(p.stdout, format, images)
}

func (p *podctl) imageImport(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	name, source := c.Args().Get(0), c.Args().Get(1)
	content, err := p.openImage(source)
	if err != nil {
		return fmt.Errorf("importing %s: %w", name, err)
	}
	defer content.Close()
	client, err := p.client()
	if err != nil {
		return err
	}
	image, err := client.importImage(c.Context, &poddv1.ImportImageHeader{Host: c.String("host"), Name: name}, content)
	if err != nil {
		return fmt.Errorf("importing %s: %w", name, err)
	}
	switch v := viewImage(image); format {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, format, v)
	case formatName:
		return imageListing.print(p.stdout, format, []imageView{v})
	default:
		_, err := fmt.Fprintf(p.stdout, "imported %s: %s, %d layers, %s\n", v.Name, shortDigest(v.Digest), v.Layers, formatBytes(v.SizeBytes))
		return err
	}
}

// openImage opens an image as the tar stream that podd wants. A directory is
// packed on the way.
func (p *podctl) openImage(source string) (io.ReadCloser, error) {
	if source == "-" {
		if isTerminal(p.stdin) {
			return nil, fmt.Errorf("%w: standard input is a terminal: pipe the image into podctl", pod.ErrInvalid)
		}
		return io.NopCloser(p.stdin), nil
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return packDirectory(source), nil
	}
	return os.Open(source)
}

func (c *client) importImage(ctx context.Context, header *poddv1.ImportImageHeader, content io.Reader) (*poddv1.Image, error) {
	// An image that could not be read to its end must not look complete: then
	// the stream is not closed but ended.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.images.ImportImage(ctx)
	err := stream.Send(&poddv1.ImportImageRequest{Request: &poddv1.ImportImageRequest_Header{Header: header}})
	buffer := make([]byte, importChunk)
	for err == nil {
		n, readErr := io.ReadFull(content, buffer)
		if n > 0 {
			err = stream.Send(&poddv1.ImportImageRequest{Request: &poddv1.ImportImageRequest_Data{Data: buffer[:n]}})
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		} else if readErr != nil {
			return nil, fmt.Errorf("reading the image: %w", readErr)
		}
	}
	// A send that failed is explained by the answer.
	response, answerErr := stream.CloseAndReceive()
	if answerErr != nil {
		return nil, answerErr
	}
	if err != nil {
		return nil, fmt.Errorf("sending the image: %w", err)
	}
	return response.Msg.GetImage(), nil
}

// shortDigest leaves the algorithm out and shows twelve digits.
func shortDigest(digest string) string {
	_, digits, ok := strings.Cut(digest, ":")
	if !ok {
		digits = digest
	}
	return digits[:min(len(digits), 12)]
}
