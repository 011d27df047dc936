package podd

import (
	"errors"
	"testing"

	"podd/daemon"
	"podd/pod"
	"podd/trust"
)

// TestPermitInside keeps operators out of an admin's pod that sees a directory of
// its host.
func TestPermitInside(t *testing.T) {
	dir := newDirectory(t)
	d, _ := testDaemon(t, "a", dir)
	beginMove(t, dir, "plain")
	spec := pod.Spec{Name: "mounted", Command: []string{"true"}, Volumes: []pod.Volume{{Source: "/etc", Destination: "/host"}}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.CreatePod(t.Context(), spec, "a"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]map[trust.Role]error{
		"plain":   {trust.RoleOperator: nil, trust.RoleAdmin: nil},
		"mounted": {trust.RoleOperator: pod.ErrDenied, trust.RoleAdmin: nil},
		"nobody":  {trust.RoleOperator: pod.ErrNotFound, trust.RoleAdmin: pod.ErrNotFound},
	} {
		for role, sentinel := range want {
			ctx := daemon.WithCaller(t.Context(), daemon.Caller{Identity: trust.Identity{Kind: trust.KindUser, Name: "jane", Role: role}})
			if err := d.permitInside(ctx, name); !errors.Is(err, sentinel) {
				t.Errorf("pod %s, %s: %v, want %v", name, role, err, sentinel)
			}
		}
	}
}
