package trust

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"podd/pod"
)

// Kind is what an identity belongs to.
type Kind string

const (
	KindHost  Kind = "host"
	KindProxy Kind = "proxy"
	KindUser  Kind = "user"
	// KindLocal is somebody on the daemon's own machine who may open its
	// socket. No certificate says so.
	KindLocal Kind = "local"
)

// Daemon reports whether identities of this kind are daemons of the cluster.
func (k Kind) Daemon() bool { return k == KindHost || k == KindProxy }

// Role is what a user may do. Each includes the one before.
type Role string

const (
	// RoleViewer may look.
	RoleViewer Role = "viewer"
	// RoleOperator may also run, stop and move pods, and work in them.
	RoleOperator Role = "operator"
	// RoleAdmin may do everything, root on the hosts by way of pods included.
	RoleAdmin Role = "admin"
)

// Roles lists the roles, the least powerful first.
var Roles = []Role{RoleViewer, RoleOperator, RoleAdmin}

// ParseRole reads a role's name. The error wraps pod.ErrInvalid.
func ParseRole(text string) (Role, error) {
	if !slices.Contains(Roles, Role(text)) {
		return "", fmt.Errorf("%w: role %q: want admin, operator or viewer", pod.ErrInvalid, text)
	}
	return Role(text), nil
}

// Allows reports whether r includes need.
func (r Role) Allows(need Role) bool {
	have, want := slices.Index(Roles, r), slices.Index(Roles, need)
	return have >= 0 && want >= 0 && have >= want
}

const (
	domain     = ".podd"
	roleDomain = ".role" + domain
	// DaemonName is a name that every daemon of the cluster has.
	DaemonName = "daemon" + domain
	// DirectoryName is a name of the daemon that serves the directory.
	DirectoryName = "directory" + domain
)

// Identity is somebody of the cluster. Only users have a role, and who comes by
// a local socket, who is an admin.
type Identity struct {
	Kind Kind
	Name string
	Role Role
}

// String is for people: "host a", "user jane (operator)".
func (i Identity) String() string {
	if i.Role != "" {
		return fmt.Sprintf("%s %s (%s)", i.Kind, i.Name, i.Role)
	}
	return fmt.Sprintf("%s %s", i.Kind, i.Name)
}

// Text is for programs: "host/a", "user/jane/operator". ParseIdentity reads it.
func (i Identity) Text() string {
	text := string(i.Kind) + "/" + i.Name
	if i.Role != "" {
		text += "/" + string(i.Role)
	}
	return text
}

// Key tells identities apart whatever their role: "host.a". It is part of keys
// in the directory.
func (i Identity) Key() string { return string(i.Kind) + "." + i.Name }

// ServerName is the name that a certificate of this identity has.
func (i Identity) ServerName() string { return ServerName(i.Kind, i.Name) }

// ServerName is the name that a certificate of the named member has.
func ServerName(k Kind, name string) string { return name + "." + string(k) + domain }

// Validate checks that somebody can have this identity. The error wraps
// pod.ErrInvalid.
func (i Identity) Validate() error {
	// A local caller is named by the machine, others by admins.
	if i.Kind != KindLocal {
		if err := pod.ValidateName(i.Name); err != nil {
			return err
		}
	}
	switch i.Kind {
	case KindHost, KindProxy:
		if i.Role != "" {
			return fmt.Errorf("%w: %s %s can't have a role", pod.ErrInvalid, i.Kind, i.Name)
		}
	case KindUser, KindLocal:
		if _, err := ParseRole(string(i.Role)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: kind of member %q: want host, proxy or user", pod.ErrInvalid, i.Kind)
	}
	return nil
}

// ParseIdentity is the reverse of Text. The error wraps pod.ErrInvalid.
func ParseIdentity(text string) (Identity, error) {
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return Identity{}, fmt.Errorf("%w: identity %q", pod.ErrInvalid, text)
	}
	i := Identity{Kind: Kind(parts[0]), Name: parts[1]}
	if len(parts) == 3 {
		i.Role = Role(parts[2])
	}
	return i, i.Validate()
}

// dnsNames are the names in the certificate of an identity.
func (i Identity) dnsNames(directory bool) []string {
	names := []string{i.ServerName()}
	if i.Kind.Daemon() {
		names = append(names, DaemonName)
	}
	if i.Role != "" {
		names = append(names, string(i.Role)+roleDomain)
	}
	if directory {
		names = append(names, DirectoryName)
	}
	return names
}

// FromCertificate reads whose certificate c is; that it is genuine was verified
// before. The error wraps pod.ErrUntrusted when it says nothing clear.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	var i Identity
	for _, name := range c.DNSNames {
		label, rest, _ := strings.Cut(name, ".")
		switch rest = "." + rest; {
		case name == DaemonName, name == DirectoryName:
		case rest == roleDomain && i.Role == "":
			i.Role = Role(label)
		case i.Kind == "" && (rest == ".host"+domain || rest == ".proxy"+domain || rest == ".user"+domain):
			i.Kind, i.Name = Kind(strings.TrimSuffix(rest[1:], domain)), label
		default:
			return Identity{}, fmt.Errorf("%w: the certificate has the unexpected name %q", pod.ErrUntrusted, name)
		}
	}
	if err := i.Validate(); err != nil {
		return Identity{}, fmt.Errorf("%w: the certificate names no member: %w", pod.ErrUntrusted, err)
	}
	return i, nil
}
