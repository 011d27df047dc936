package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"podd/pod"
)

// userName is whose identity a command gets: the one asked for, else the pod's,
// else the image's, else root's.
func (c *Container) userName(asked string) string {
	for _, name := range []string{asked, c.record.Config.Spec.User, c.record.Image.Config.User} {
		if name != "" {
			return name
		}
	}
	return "0"
}

// user looks NAME|UID[:GROUP|GID] up in the pod's own user database. The error
// wraps pod.ErrInvalid if it is not there; numbers need not be.
func (c *Container) user(name string) (*user.ExecUser, error) {
	var data [2][]byte
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		var err error
		if data[i], err = c.readFile(path, maxEtcFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for user %q: %w", name, err)
		}
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(data[0]), bytes.NewReader(data[1]))
	if err != nil {
		return nil, fmt.Errorf("%w: user %q: %w", pod.ErrInvalid, name, err)
	}
	return found, nil
}

// identity is how podinit is told who a command runs as.
func identity(u *user.ExecUser) []string {
	groups := make([]string, len(u.Sgids))
	for i, gid := range u.Sgids {
		groups[i] = strconv.Itoa(gid)
	}
	args := []string{"--uid", strconv.Itoa(u.Uid), "--gid", strconv.Itoa(u.Gid)}
	if len(groups) > 0 {
		args = append(args, "--groups", strings.Join(groups, ","))
	}
	return args
}
