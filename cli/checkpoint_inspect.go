package cli

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/pod"
	"podd/trust"
)

func (p *podctl) checkpointInspectCommand() *command {
	return &command{
		name: "inspect", args: "FILE|-", min: 1, max: 1, completes: []completer{completeFiles, completeNothing},
		usage: "show what a checkpoint file is",
		description: `Shows whose a checkpoint file is, when and where it was written, what it needs of
a host and what is in it, and whether a host of the cluster has signed that.
Nothing is decrypted: command, environment, files and memory stay secret.

Without a cluster to ask, the signature is not verified. The exit code is 125 if
it is wrong. With --identity the content is decrypted, here, and verified too.`,
		examples: []string{"podctl checkpoint inspect alice.podd", "podctl checkpoint inspect -o json alice.podd | jq .header.epoch"},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "identity", Usage: "also verify the content, with the age identities in `FILE`"},
			outputFlag(),
		},
		action: p.checkpointInspect,
	}
}

// checkpointView is a checkpoint file.
type checkpointView struct {
	Header archive.Header `json:"header"`
	// FileBytes is the size of the file, Bytes of what is in it.
	FileBytes int64 `json:"fileBytes"`
	Bytes     int64 `json:"bytes"`
	// Signer is who has signed it, if that could be verified.
	Signer string `json:"signer,omitempty"`
	// Signature is "verified", "not verified" or "wrong", and Reason why.
	Signature signatureState `json:"signature"`
	Reason    string         `json:"reason,omitempty"`
	// Content is "verified" if it was decrypted.
	Content string `json:"content,omitempty"`
}

type signatureState string

const (
	signatureVerified signatureState = "verified"
	signatureUnknown  signatureState = "not verified"
	signatureWrong    signatureState = "wrong"
)

func (p *podctl) checkpointInspect(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	path := c.Args().First()
	content, _, err := p.openCheckpoint(path)
	if err != nil {
		return fmt.Errorf("inspecting %s: %w", path, err)
	}
	defer content.Close()
	body := bufio.NewReaderSize(content, restoreChunk)
	envelope, err := archive.ReadEnvelope(body)
	if err != nil {
		return fmt.Errorf("inspecting %s: %w", path, err)
	}
	v := checkpointView{Header: envelope.Header, Bytes: envelope.Header.Bytes()}
	p.verifySignature(c.Context, envelope, &v)
	counted := &countingReader{r: body}
	if file := c.String("identity"); file != "" {
		identities, err := readIdentities(file)
		if err != nil {
			return err
		}
		if err := envelope.Check(counted, identities...); err != nil {
			return fmt.Errorf("inspecting %s: %w", path, err)
		}
		v.Content = string(signatureVerified)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return fmt.Errorf("inspecting %s: %w", path, err)
	}
	v.FileBytes = int64(len(envelope.Bytes())) + counted.n
	if err := p.printCheckpoint(format, v); err != nil {
		return err
	}
	if v.Signature == signatureWrong {
		return fmt.Errorf("inspecting %s: %w: %s", path, pod.ErrUntrusted, v.Reason)
	}
	return nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// inspectLimit bounds how long a cluster is asked that may not be there.
const inspectLimit = 5 * time.Second

// verifySignature finds out what the signature is worth.
func (p *podctl) verifySignature(ctx context.Context, envelope *archive.Envelope, v *checkpointView) {
	v.Signature = signatureUnknown
	verify, err := p.chainVerifier(ctx)
	if err != nil {
		v.Reason = "no cluster to ask: " + err.Error()
		return
	}
	err = envelope.Verify(func(chain []byte, at time.Time) (*x509.Certificate, error) {
		identity, leaf, err := verify(chain, at)
		if err == nil && (identity.Kind != trust.KindHost || identity.Name != envelope.Header.Host) {
			err = fmt.Errorf("%w: %s has signed for host %s", pod.ErrUntrusted, identity, envelope.Header.Host)
		}
		v.Signer = identity.String()
		return leaf, err
	})
	if err != nil {
		v.Signature, v.Signer, v.Reason = signatureWrong, "", err.Error()
		return
	}
	v.Signature = signatureVerified
}

// chainVerifier is by what certificates are verified: the credentials of the
// context, or else the authority that the daemon names.
func (p *podctl) chainVerifier(ctx context.Context) (func([]byte, time.Time) (trust.Identity, *x509.Certificate, error), error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	if store := client.target.store; store != nil {
		return store.VerifyChain, nil
	}
	ctx, cancel := context.WithTimeout(ctx, inspectLimit)
	defer cancel()
	response, err := client.trust.GetTrust(ctx, connect.NewRequest(&poddv1.GetTrustRequest{}))
	if err != nil {
		return nil, err
	}
	return func(chain []byte, at time.Time) (trust.Identity, *x509.Certificate, error) {
		return trust.VerifyChain([]byte(response.Msg.GetAuthority()), chain, at)
	}, nil
}

func (p *podctl) printCheckpoint(f format, v checkpointView) error {
	switch f {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, f, v)
	case formatName:
		_, err := fmt.Fprintln(p.stdout, v.Header.Pod)
		return err
	}
	h := v.Header
	state := "stopped"
	if h.LeftRunning {
		state = "left running"
	}
	image := h.Image
	if h.ImageDigest != "" {
		image += " (" + shortDigest(h.ImageDigest) + ")"
	}
	signature := string(v.Signature)
	switch v.Signature {
	case signatureVerified:
		signature = "verified: " + v.Signer
	case signatureUnknown:
		signature += ": " + v.Reason
	case signatureWrong:
		signature = "WRONG: " + v.Reason
	}
	rows := [][2]string{
		{"Pod", fmt.Sprintf("%s, epoch %d, which was %s", h.Pod, h.Epoch, state)},
		{"Written", fmt.Sprintf("%s by host %s", h.CreatedAt.Format(time.RFC3339), h.Host)},
		{"File", fmt.Sprintf("%s, %s in %s", h.ID, formatBytes(v.Bytes), formatBytes(v.FileBytes))},
		{"Image", image},
		{"Needs", fmt.Sprintf("kernel %s, CRIU %s", h.Kernel, criuVersion(int32(h.CRIU)))},
		{"Processor", h.CPU},
		{"podd", h.Version},
		{"For", strings.Join(h.Recipients, ", ")},
		{"Signature", signature},
	}
	if v.Content != "" {
		rows = append(rows, [2]string{"Content", v.Content})
	}
	if f == formatWide {
		flags := slices.Sorted(slices.Values(h.CPUFlags))
		rows = append(rows, [2]string{"Features", strings.Join(flags, " ")})
	}
	t := newTable(p.stdout)
	for _, row := range rows {
		t.row(row[0], row[1])
	}
	if err := t.flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	return memberOfFileListing.print(p.stdout, f, h.Members)
}

var memberOfFileListing = listing[archive.Member]{
	name: func(m archive.Member) string { return m.Name },
	columns: []column[archive.Member]{
		{title: "MEMBER", text: func(m archive.Member) string { return m.Name }},
		{title: "SIZE", text: func(m archive.Member) string { return formatBytes(m.Size) }},
		{title: "SHA-256", text: func(m archive.Member) string { return m.SHA256 }},
	},
}
