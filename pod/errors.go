package pod

import "errors"

// The conditions a caller decides on. Packages wrap them with what was being
// done; the API carries them across the network as status codes.
var (
	// ErrInvalid means the request itself is wrong and no retry will help.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound means the pod, host, image or move named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists means the name is already taken.
	ErrExists = errors.New("already exists")
	// ErrConflict means somebody else changed the thing first: a
	// compare-and-swap failed, or a move of the pod is already under way.
	ErrConflict = errors.New("conflict")
	// ErrPhase means the pod is not in a phase that allows the operation,
	// such as moving a stopped pod.
	ErrPhase = errors.New("wrong phase")
	// ErrUnavailable means a host, the proxy or the directory can't be
	// reached now.
	ErrUnavailable = errors.New("unavailable")
	// ErrExhausted means a bounded resource ran out: addresses, labels,
	// disk or memory.
	ErrExhausted = errors.New("exhausted")
	// ErrDenied means the caller is known and may not do that.
	ErrDenied = errors.New("permission denied")
	// ErrUnknownCaller means the caller has not proved who it is.
	ErrUnknownCaller = errors.New("not authenticated")
	// ErrUntrusted means something did not come from where it claims, or was
	// changed on the way: a signature or a digest is wrong.
	ErrUntrusted = errors.New("not to be trusted")
	// ErrBlocked means preflight found something that can't be carried to
	// another host. The details are Blockers.
	ErrBlocked = errors.New("not movable")
)
