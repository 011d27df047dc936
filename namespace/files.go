package namespace

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"podd/namespace/image"
)

// initDir is the directory of the pod's init, its logs and its sockets. It is in
// the upper layer, so it goes where the pod goes.
const initDir = "/.podd"

// maxEtcFile bounds what is read of a pod's user database, in bytes.
const maxEtcFile = 4 << 20

// writeFiles makes the files every new pod has of its own.
func (c *Container) writeFiles() error {
	root, err := openDir(c.paths.rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	init, err := os.ReadFile(c.runtime.opts.InitPath)
	if err != nil {
		return fmt.Errorf("reading the pods' init: %w", err)
	}
	config := c.record.Config
	name := config.Spec.Name
	files := []file{
		{initDir + "/init", init, 0o755},
		{"/etc/hostname", []byte(name + "\n"), 0o644},
		{"/etc/hosts", hostsFile(config), 0o644},
		{"/etc/resolv.conf", resolvFile(config), 0o644},
	}
	if c.record.Image.Name == image.HostName {
		private, err := c.privateFiles()
		if err != nil {
			return err
		}
		files = append(files, private...)
	}
	for _, f := range files {
		if err := f.write(root); err != nil {
			return fmt.Errorf("writing %s into the pod: %w", f.path, err)
		}
	}
	d, err := pathrs.MkdirAllHandle(root, initDir, 0o700)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Fchmodat(int(d.Fd()), ".", 0o700, 0); err != nil {
		return fmt.Errorf("closing %s to other users: %w", initDir, err)
	}
	if err := symlinkIn(root, "../proc/self/mounts", "/etc/mtab"); err != nil {
		return err
	}
	return c.makeHome(root)
}

// file is a file of the pod's. Its owner is root.
type file struct {
	path string
	data []byte
	mode uint32
}

// write puts the file in place of whatever is there.
func (f file) write(root *os.File) error {
	parent, err := pathrs.MkdirAllHandle(root, path.Dir(f.path), 0o755)
	if err != nil {
		return err
	}
	defer parent.Close()
	name := path.Base(f.path)
	if err := unix.Unlinkat(int(parent.Fd()), name, 0); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "unlinkat", Path: f.path, Err: err}
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "openat", Path: f.path, Err: err}
	}
	out := os.NewFile(uintptr(fd), f.path)
	_, err = out.Write(f.data)
	if err == nil {
		err = unix.Fchmod(fd, f.mode)
	}
	return errors.Join(err, out.Close())
}

func symlinkIn(root *os.File, target, link string) error {
	parent, err := pathrs.MkdirAllHandle(root, path.Dir(link), 0o755)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Unlinkat(int(parent.Fd()), path.Base(link), 0); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "unlinkat", Path: link, Err: err}
	}
	if err := unix.Symlinkat(target, int(parent.Fd()), path.Base(link)); err != nil {
		return &os.PathError{Op: "symlinkat", Path: link, Err: err}
	}
	return nil
}

func hostsFile(config Config) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if config.Address.IsValid() {
		fmt.Fprintf(&b, "%s\t%s\n", config.Address, ownNames(config))
	}
	return b.Bytes()
}

// ownNames are the pod's names in its /etc/hosts.
func ownNames(config Config) string {
	if config.Search == "" {
		return config.Spec.Name
	}
	return config.Spec.Name + "." + config.Search + " " + config.Spec.Name
}

func resolvFile(config Config) []byte {
	var b bytes.Buffer
	if config.Nameserver.IsValid() {
		fmt.Fprintf(&b, "nameserver %s\n", config.Nameserver)
	}
	if config.Search != "" {
		fmt.Fprintf(&b, "search %s\n", config.Search)
	}
	return b.Bytes()
}

// privateFiles replaces files of the host that a program expects to find but
// that must not be the host's: the password files, with every account locked,
// and the machine's identity.
func (c *Container) privateFiles() ([]file, error) {
	id := make([]byte, 16)
	rand.Read(id)
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // machine-id(5): a version 4 UUID
	files := []file{
		{"/etc/machine-id", fmt.Appendf(nil, "%x\n", id), 0o444},
	}
	for _, locked := range []struct{ from, to, format string }{
		{"/etc/passwd", "/etc/shadow", "%s:*:19000:0:99999:7:::\n"}, // shadow(5)
		{"/etc/group", "/etc/gshadow", "%s:!::\n"},                  // gshadow(5)
	} {
		data, err := c.readFile(locked.from, maxEtcFile)
		if err != nil {
			return nil, fmt.Errorf("reading the pod's users: %w", err)
		}
		var b bytes.Buffer
		for line := range strings.Lines(string(data)) {
			if name, _, ok := strings.Cut(line, ":"); ok && name != "" && name[0] != '#' {
				fmt.Fprintf(&b, locked.format, name)
			}
		}
		files = append(files, file{locked.to, b.Bytes(), 0o600})
	}
	return files, nil
}

// makeHome gives the user of a pod of the host's image the home that its
// database names, because the host's homes are not seen.
func (c *Container) makeHome(root *os.File) error {
	if c.record.Image.Name != image.HostName {
		return nil
	}
	user, err := c.user(c.userName(""))
	if err != nil {
		return err
	}
	if user.Home == "" || user.Home == "/" {
		return nil
	}
	if f, err := openIn(root, user.Home, unix.O_PATH, true); err == nil {
		return f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking for the user's home %s: %w", user.Home, err)
	}
	home, err := pathrs.MkdirAllHandle(root, user.Home, 0o755)
	if err != nil {
		return fmt.Errorf("making the user's home %s: %w", user.Home, err)
	}
	defer home.Close()
	if err := unix.Fchownat(int(home.Fd()), "", user.Uid, user.Gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("making the user's home %s: %w", user.Home, err)
	}
	return nil
}
