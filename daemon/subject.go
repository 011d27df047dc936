package daemon

import (
	"strings"

	poddv1 "podd/api/podd/v1"
)

// subject is what a call is about, for the audit: "pod alice". It is empty for
// the messages of a stream that say nothing of it.
func subject(message any) string {
	switch m := message.(type) {
	case *poddv1.CreatePodRequest:
		return named("pod", m.GetSpec().GetName(), "image", m.GetSpec().GetImage())
	case *poddv1.ExecRequest:
		return named("pod", m.GetStart().GetPod())
	case *poddv1.AttachRequest:
		return named("pod", m.GetStart().GetPod())
	case *poddv1.MovePodRequest:
		return named("pod", m.GetPod(), "target", m.GetTarget())
	case *poddv1.CancelMoveRequest:
		return named("move", m.GetId())
	case *poddv1.HoldRequest:
		return named("move", m.GetMove())
	case *poddv1.RestorePodRequest:
		return named("pod", m.GetHeader().GetName(), "host", m.GetHeader().GetHost())
	case *poddv1.ImportImageRequest:
		return named("image", m.GetHeader().GetName(), "host", m.GetHeader().GetHost())
	case *poddv1.RemoveImageRequest:
		return named("image", m.GetName(), "host", m.GetHost())
	case *poddv1.RemoveHostRequest:
		return named("host", m.GetName())
	case *poddv1.CreateTokenRequest:
		return named(m.GetKind(), m.GetName(), "role", m.GetRole())
	case *poddv1.DeleteTokenRequest:
		return named("token", m.GetId())
	case *poddv1.RevokeUserRequest:
		return named("user", m.GetName())
	case *poddv1.JoinRequest: // the token may know the name
		return named("token", m.GetId(), m.GetKind(), m.GetName())
	}
	if m, ok := message.(interface{ GetPod() string }); ok {
		return named("pod", m.GetPod())
	}
	return ""
}

// named joins pairs of a kind and a name, without those that have no name. The
// names are a caller's words, so they are cut off at some length.
func named(pairs ...string) string {
	const longest = 128
	var words []string
	for i := 0; i+1 < len(pairs); i += 2 {
		if kind, name := pairs[i], pairs[i+1]; name != "" {
			words = append(words, kind, name[:min(len(name), longest)])
		}
	}
	return strings.Join(words, " ")
}
