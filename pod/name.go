package pod

import (
	"fmt"
	"regexp"
)

// MaxNameLength is the longest pod or host name: a name is one DNS label
// (RFC 1035, section 2.3.4).
const MaxNameLength = 63

// validName is the "letter, digit, hyphen" rule of RFC 1123, section 2.1, in
// lower case, because names become DNS labels and DNS compares without case.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// ValidateName reports whether name may name a pod or a host. The error wraps
// ErrInvalid and says what is allowed.
func ValidateName(name string) error {
	if len(name) > MaxNameLength {
		return fmt.Errorf("%w: name %q has %d characters; at most %d are allowed", ErrInvalid, name, len(name), MaxNameLength)
	}
	if !validName.MatchString(name) {
		return fmt.Errorf("%w: name %q: use lower-case letters, digits and hyphens, beginning and ending with a letter or digit", ErrInvalid, name)
	}
	return nil
}
