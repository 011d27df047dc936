package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	agecrypt "filippo.io/age"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/pod"
)

// restoreChunk is how many bytes of a file go into one message.
const restoreChunk = 256 << 10

func (p *podctl) restoreCommand() *command {
	return &command{
		name: "restore", category: "Moves", args: "FILE|-", min: 1, max: 1,
		completes: []completer{completeFiles, completeNothing},
		notFound:  "podctl host ls lists the hosts, podctl image ls --host HOST its images",
		usage:     "let a pod go on from a checkpoint file",
		description: `Makes a pod from a file that podctl checkpoint has written. It is the same pod:
with its name, addresses and, if their other ends still wait, its connections. So
it is refused as long as that pod runs anywhere, if the file is older than how
the pod ended, or if another one has its name or address by now.

--force-new-identity makes a copy instead, which may run beside the original: it
has another address and, with --name, another name, and its connections with
others are closed.

The host verifies the file whole before it makes anything: that a host of this
cluster has signed it, and that CRIU, kernel, processor and image fit.`,
		examples: []string{
			"podctl restore alice.podd",
			"podctl restore --host b alice.podd",
			"podctl restore --force-new-identity --name alice2 alice.podd",
			"podctl restore --identity key.txt alice.podd   # encrypted to your key",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "host", Usage: "restore on `HOST` (default: the podd that is asked)"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` for the pod (default: its own)"},
			&cli.BoolFlag{Name: "force-new-identity", Usage: "make a copy with a new address"},
			&cli.StringFlag{Name: "identity", Usage: "decrypt with the age identities in `FILE`, here, and encrypt anew to the cluster"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show the stages while they last"},
			outputFlag(),
		},
		action: p.restore,
	}
}

func (p *podctl) restore(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	path := c.Args().First()
	content, size, err := p.openCheckpoint(path)
	if err != nil {
		return fmt.Errorf("restoring %s: %w", path, err)
	}
	defer content.Close()
	display := p.newProgress(format, c.Bool("quiet"))
	display.heading = "restoring " + path
	var from io.Reader = content
	if file := c.String("identity"); file != "" {
		resealed, err := client.reseal(c.Context, content, file)
		if err != nil {
			return fmt.Errorf("restoring %s: %w", path, err)
		}
		defer resealed.Close()
		from, size = resealed, 0
	}
	restored, err := client.restore(c.Context, &poddv1.RestorePodHeader{
		Host: c.String("host"), Name: c.String("name"), ForceNewIdentity: c.Bool("force-new-identity"),
	}, from, size, display)
	display.finish(err != nil)
	if err != nil {
		err = fmt.Errorf("restoring %s: %w", path, err)
		if errors.Is(err, pod.ErrConflict) || errors.Is(err, pod.ErrExists) {
			return &hintedError{err, "podctl restore --force-new-identity --name NAME makes a copy with another name and address"}
		}
		return err
	}
	switch v := viewPod(restored); format {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, format, v)
	case formatName:
		_, err := fmt.Fprintln(p.stdout, v.Name)
		return err
	default:
		_, err := fmt.Fprintf(p.stdout, "restored %s on %s: %s, epoch %d\n", v.Name, v.Host, v.PublicAddress, v.Epoch)
		return err
	}
}

// openCheckpoint opens a file; the size is 0 if it is not known.
func (p *podctl) openCheckpoint(path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		if isTerminal(p.stdin) {
			return nil, 0, fmt.Errorf("%w: standard input is a terminal: pipe the file into podctl", pod.ErrInvalid)
		}
		return io.NopCloser(p.stdin), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%w: %s is a directory", pod.ErrInvalid, path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// restore sends a file and returns the pod that was made of it.
func (c *client) restore(ctx context.Context, header *poddv1.RestorePodHeader, content io.Reader, size int64, display *progress) (*poddv1.Pod, error) {
	// A file that could not be read to its end must not look complete: then
	// the stream is not closed but ended.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.pods.RestorePod(ctx)
	err := stream.Send(&poddv1.RestorePodRequest{Request: &poddv1.RestorePodRequest_Header{Header: header}})
	buffer := make([]byte, restoreChunk)
	sent := int64(0)
	for err == nil {
		n, readErr := io.ReadFull(content, buffer)
		if n > 0 {
			err = stream.Send(&poddv1.RestorePodRequest{Request: &poddv1.RestorePodRequest_Data{Data: buffer[:n]}})
			sent += int64(n)
			display.update(pod.StageTransfer, sent, size)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		} else if readErr != nil {
			return nil, fmt.Errorf("reading the file: %w", readErr)
		}
	}
	display.update(pod.StageRestore, 0, 0)
	// A send that failed is explained by the answer.
	response, answerErr := stream.CloseAndReceive()
	if answerErr != nil {
		return nil, answerErr
	}
	if err != nil {
		return nil, fmt.Errorf("sending the file: %w", err)
	}
	return response.Msg.GetPod(), nil
}

// reseal decrypts a file with the identities in a file and encrypts it anew to
// the cluster. The signature stays good: it is of what is inside.
func (c *client) reseal(ctx context.Context, content io.Reader, identityFile string) (io.ReadCloser, error) {
	identities, err := readIdentities(identityFile)
	if err != nil {
		return nil, err
	}
	response, err := c.trust.GetTrust(ctx, connect.NewRequest(&poddv1.GetTrustRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking for the cluster's key: %w", err)
	}
	recipients, err := archive.Recipients(response.Msg.GetRecipient())
	if err != nil {
		return nil, fmt.Errorf("the cluster's key: %w", err)
	}
	buffered := bufio.NewReaderSize(content, restoreChunk)
	envelope, err := archive.ReadEnvelope(buffered)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		_, err := w.Write(envelope.Bytes())
		if err == nil {
			err = archive.Reseal(w, buffered, identities, recipients...)
		}
		w.CloseWithError(err)
	}()
	return r, nil // closing it ends the goroutine
}

func readIdentities(path string) ([]agecrypt.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading identities: %w", err)
	}
	defer f.Close()
	const limit = 1 << 20
	identities, err := agecrypt.ParseIdentities(io.LimitReader(f, limit))
	if err != nil {
		// Its own words may quote the file.
		return nil, fmt.Errorf("%w: %s has no age identities (AGE-SECRET-KEY-1...)", pod.ErrInvalid, path)
	}
	return identities, nil
}
