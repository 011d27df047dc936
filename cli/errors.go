package cli

import (
	"errors"
	"fmt"
	"strings"

	"podd/pod"
)

// Exit codes, as podman's.
const (
	exitError    = 125 // podctl or podd failed, or wrong usage
	exitNoInvoke = 126 // the command in the pod can't be executed
	exitNotFound = 127 // the command in the pod isn't found
)

// exitStatus ends podctl with a code and no message: everything is said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command line that can't be understood.
type usageError struct {
	command *command
	message string
}

func (e *usageError) Error() string {
	if path := e.command.path(); path != "" {
		return path + ": " + e.message
	}
	return e.message
}

// hintedError is an error whose remedy the command knows.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// exitCode reports err and returns the exit code for it.
func (p *podctl) exitCode(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	p.printError(err)
	return invocationCode(err)
}

// invocationCode is the exit code for a pod or session that could not be
// started: the kernel's two reasons why a command can't be executed have codes
// of their own.
func invocationCode(err error) int {
	switch text := err.Error(); {
	case errors.Is(err, pod.ErrDenied):
		return exitError // by podd, not by the kernel
	case strings.Contains(text, "executable file not found"):
		return exitNotFound
	case strings.Contains(text, "exec") && strings.Contains(text, "permission denied"):
		return exitNoInvoke
	}
	return exitError
}

// printError writes an error, and the hint to it unless it was given before.
func (p *podctl) printError(err error) {
	fmt.Fprintf(p.stderr, "podctl: %v\n", err)
	if hint := p.hint(err); hint != "" && !p.hinted[hint] {
		p.hinted[hint] = true
		fmt.Fprintf(p.stderr, "hint: %s\n", hint)
	}
}

// hint says what to do next, where the kind of the error tells.
func (p *podctl) hint(err error) string {
	var usage *usageError
	var hinted *hintedError
	switch {
	case errors.As(err, &hinted):
		return hinted.hint
	case errors.As(err, &usage):
		return strings.TrimSpace("podctl help "+usage.command.path()) + " shows how it is used"
	case p.connected != nil && p.connected.hint() != "":
		return p.connected.hint()
	case errors.Is(err, pod.ErrUnknownCaller):
		return needToken
	case errors.Is(err, pod.ErrDenied):
		return "podctl cluster status shows who you are and your role"
	case errors.Is(err, pod.ErrNotFound):
		if p.current != nil && p.current.notFound != "" {
			return p.current.notFound
		}
		return "podctl ps -a lists the pods"
	case errors.Is(err, pod.ErrUnavailable):
		return "podctl host ls shows which hosts are alive"
	case errors.Is(err, pod.ErrPhase):
		return "podctl ps -a shows each pod's phase"
	case errors.Is(err, pod.ErrConflict):
		return "podctl move ls shows the moves under way; try again when they are done"
	}
	return ""
}
