package podd

import (
	"podd/checkpoint"
	"podd/namespace"
)

// restorePolicy is what the images of a pod may make of it here.
func restorePolicy(container *namespace.Container) (*checkpoint.Policy, error) {
	confined, err := container.Confinement()
	if err != nil {
		return nil, err
	}
	policy := &checkpoint.Policy{
		Capabilities: confined.Capabilities, NoNewPrivileges: confined.NoNewPrivileges,
		SystemCallFilter: confined.SystemCallFilter, Threads: confined.PIDs,
	}
	for _, m := range confined.Mounts {
		policy.Mounts = append(policy.Mounts, checkpoint.PolicyMount{
			Destination: m.Destination, Type: m.Type, Root: m.Root, Flags: m.Flags, Required: m.Required,
		})
	}
	return policy, nil
}
