package archive

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"time"

	"podd/pod"
)

const (
	// magic begins every file of any version, version follows it.
	magic   = "PODDCKP"
	version = 1
	// The bounds of what is read before the signature is verified, in bytes.
	maxHeader = 256 << 10
	maxChain  = 64 << 10
	// maxMembers bounds the number of members, maxText the length of a text
	// in the header, maxBytes the plaintext.
	maxMembers = 64
	maxText    = 256
	maxFlags   = 2048
	maxBytes   = 1 << 50
)

var (
	// ErrFormat means that something is no checkpoint file, or a damaged one.
	ErrFormat = fmt.Errorf("%w: not a whole checkpoint file", pod.ErrInvalid)
	// ErrVersion means that a checkpoint file has another format.
	ErrVersion = fmt.Errorf("%w: checkpoint file of another version", pod.ErrInvalid)
	// ErrSignature means that the clear part is not what the signer signed, or
	// that the signer is not to be trusted.
	ErrSignature = fmt.Errorf("%w: the signature of the checkpoint file is not valid", pod.ErrUntrusted)
	// ErrDigest means that a member is not what was signed.
	ErrDigest = fmt.Errorf("%w: the content of the checkpoint file is not what was signed", pod.ErrUntrusted)
	// ErrRecipient means that the file is encrypted to somebody else.
	ErrRecipient = errors.New("the checkpoint file is not encrypted to this key")
)

// Header is the clear part of a file.
type Header struct {
	// ID tells the file from all others: letters and digits.
	ID string `json:"id"`
	// Pod is the pod's name, Epoch the incarnation that was written.
	Pod   string    `json:"pod"`
	Epoch pod.Epoch `json:"epoch"`
	// Host is the host that wrote the file, CreatedAt when, by its clock.
	Host      string    `json:"host"`
	CreatedAt time.Time `json:"createdAt"`
	// LeftRunning says that the pod went on running.
	LeftRunning bool `json:"leftRunning,omitempty"`
	// What the pod ran on: the kernel's release, the processor's model and
	// features, CRIU's version as MMmmss, podd's version.
	Kernel   string   `json:"kernel"`
	CPU      string   `json:"cpu,omitempty"`
	CPUFlags []string `json:"cpuFlags"`
	CRIU     int      `json:"criu"`
	Version  string   `json:"version"`
	// Image is the name of the pod's image and ImageDigest its content, empty
	// where it has none.
	Image       string `json:"image"`
	ImageDigest string `json:"imageDigest,omitempty"`
	// Recipients are the age public keys the file was first encrypted to.
	Recipients []string `json:"recipients"`
	// Members describe the content, in order.
	Members []Member `json:"members"`
}

// Member is one part of a file's content.
type Member struct {
	Name string `json:"name"`
	// Size is in bytes, before compression.
	Size int64 `json:"size"`
	// SHA256 is the digest, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Bytes is the size of all members together, before compression.
func (h *Header) Bytes() int64 {
	var total int64
	for _, m := range h.Members {
		total += m.Size
	}
	return total
}

// memberName is what members are called.
var memberName = regexp.MustCompile(`^[a-z][a-z0-9.-]{0,31}$`)

// fileID is what IDs are made of.
var fileID = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

// check refuses a header that could not have been written by this package. What
// passes can be shown on a terminal.
func (h *Header) check() error {
	if err := pod.ValidateName(h.Pod); err != nil {
		return fmt.Errorf("%w: pod: %w", ErrFormat, err)
	}
	if err := pod.ValidateName(h.Host); err != nil {
		return fmt.Errorf("%w: host: %w", ErrFormat, err)
	}
	if !fileID.MatchString(h.ID) {
		return fmt.Errorf("%w: its ID %q", ErrFormat, h.ID)
	}
	if h.Epoch == 0 || h.CRIU < 0 || h.CreatedAt.IsZero() {
		return fmt.Errorf("%w: its header lacks the epoch, time or version", ErrFormat)
	}
	texts := append([]string{h.Kernel, h.CPU, h.Version, h.Image, h.ImageDigest}, h.Recipients...)
	if len(h.CPUFlags) > maxFlags || len(h.Recipients) > maxMembers {
		return fmt.Errorf("%w: its header has too many entries", ErrFormat)
	}
	for _, text := range append(texts, h.CPUFlags...) {
		if len(text) > maxText || !printable(text) {
			return fmt.Errorf("%w: its header has an impossible text", ErrFormat)
		}
	}
	return checkMembers(h.Members)
}

func checkMembers(members []Member) error {
	if len(members) == 0 || len(members) > maxMembers {
		return fmt.Errorf("%w: it has %d members", ErrFormat, len(members))
	}
	seen := map[string]bool{}
	left := int64(maxBytes)
	for _, m := range members {
		digest, err := hex.DecodeString(m.SHA256)
		switch {
		case !memberName.MatchString(m.Name) || seen[m.Name]:
			return fmt.Errorf("%w: member name %q", ErrFormat, m.Name)
		case err != nil || len(digest) != 32:
			return fmt.Errorf("%w: digest of member %s", ErrFormat, m.Name)
		case m.Size < 0 || m.Size > left:
			return fmt.Errorf("%w: size of member %s", ErrFormat, m.Name)
		}
		seen[m.Name] = true
		left -= m.Size
	}
	return nil
}

func printable(s string) bool {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

// encode writes a header that check accepts.
func (h *Header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(data) > maxHeader {
		return nil, fmt.Errorf("%w: a header of %d bytes", ErrFormat, len(data))
	}
	return data, nil
}

// decodeHeader reads what encode writes and nothing else.
func decodeHeader(data []byte) (*Header, error) {
	h := new(Header)
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(h); err != nil {
		return nil, fmt.Errorf("%w: its header: %w", ErrFormat, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: more after its header", ErrFormat)
	}
	return h, h.check()
}

// MaxBody is the most that the encrypted part can have, in bytes, given what is
// declared: neither zstd nor age add more than a thousandth to what can't be
// compressed, and headers of their own.
func (h *Header) MaxBody() int64 {
	const overhead = 1 << 20
	total := h.Bytes()
	return min(total+total>>10, math.MaxInt64-overhead) + overhead
}
