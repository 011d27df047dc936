package image

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podd/pod"
)

// HostName is the built-in image that is the host's own userland. The store
// only recognises it: what its lower layer looks like is the namespace
// package's business.
const HostName = "host"

// DirPrefix marks an image that is a directory of the host, used in place.
const DirPrefix = "dir:"

// Image is what a pod's root file system and default command are made from.
type Image struct {
	// Name is the name it was resolved by, or its first name when listed;
	// empty for an image whose every name was taken over by a later import.
	Name string `json:"name"`
	// Names are all its names, in canonical form.
	Names []string `json:"names,omitempty"`
	// Digest is the digest of the image's configuration ("sha256:..."), which
	// contains the diff IDs of the layers: it pins the content, and is the
	// same however the image travelled. Empty for "host" and "dir:".
	Digest string `json:"digest,omitempty"`
	// Layers are the directories of the host to stack, topmost first: the
	// order of overlay's lowerdir. Nil for "host".
	Layers []string `json:"layers,omitempty"`
	// Config is what to run unless the pod's specification says otherwise.
	Config Config `json:"config"`
	// Size is how many bytes the files of all layers hold; 0 for "host" and
	// "dir:".
	Size int64 `json:"size"`
	// CreatedAt is when the image was built, by its own account.
	CreatedAt time.Time `json:"createdAt,omitzero"`
	// ImportedAt is when this store first took it in.
	ImportedAt time.Time `json:"importedAt,omitzero"`
}

// BuiltIn reports whether the image is "host" or a "dir:", neither of which is
// in the store.
func (i Image) BuiltIn() bool { return i.Digest == "" }

// Config is the part of an OCI image configuration that podd uses.
type Config struct {
	Env        []string          `json:"env,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// StopSignal is a name or number, "SIGQUIT" or "3"; empty means SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`
}

// Command is the command line of the image when the user gives args: the
// entry point followed by args, or by the image's own arguments when there
// are none.
func (c Config) Command(args []string) []string {
	if len(args) == 0 {
		args = c.Cmd
	}
	return append(append([]string(nil), c.Entrypoint...), args...)
}

func configOf(f *v1.ConfigFile) Config {
	return Config{
		Env:        f.Config.Env,
		Entrypoint: f.Config.Entrypoint,
		Cmd:        f.Config.Cmd,
		User:       f.Config.User,
		WorkingDir: f.Config.WorkingDir,
		Labels:     f.Config.Labels,
		StopSignal: f.Config.StopSignal,
	}
}

// validName is a Docker reference without the digest: an optional registry, a
// path and an optional tag.
var validName = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$`)

// maxNameLength is Docker's limit on a reference.
const maxNameLength = 255

// CanonicalName is the one spelling the store keeps a name under: without
// Docker's default registry and podman's "localhost/", and with a tag. So
// "redis", "redis:latest" and "docker.io/library/redis:latest" are one image.
// The error wraps pod.ErrInvalid.
func CanonicalName(name string) (string, error) {
	if len(name) > maxNameLength || !validName.MatchString(name) {
		return "", fmt.Errorf("%w: image name %q: want NAME[:TAG] in lower case, such as redis or example.org/team/app:1.2", pod.ErrInvalid, name)
	}
	for _, prefix := range []string{"docker.io/", "index.docker.io/", "localhost/"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			name = rest
			break
		}
	}
	name = strings.TrimPrefix(name, "library/")
	if !strings.Contains(name[strings.LastIndexByte(name, '/')+1:], ":") {
		name += ":latest"
	}
	if name == HostName+":latest" {
		return "", fmt.Errorf("%w: image name %q is built in: it stands for the host's own files", pod.ErrInvalid, name)
	}
	return name, nil
}

// checkPlatform refuses an image that this host can't execute. An image that
// does not say its platform is taken as fitting.
func checkPlatform(os, arch string) error {
	if os == "" {
		os = "linux"
	}
	if arch == "" {
		arch = runtime.GOARCH
	}
	if os != "linux" || normalArch(arch) != runtime.GOARCH {
		return fmt.Errorf("%w: the image is for %s/%s, this host is linux/%s", pod.ErrInvalid, os, arch, runtime.GOARCH)
	}
	return nil
}

// normalArch maps the kernel's names of architectures, which some builders
// write, to Go's, which the specification asks for.
func normalArch(arch string) string {
	switch arch {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}
