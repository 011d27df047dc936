package podd

import (
	"fmt"

	"podd/pod"
)

// chooseStrategy decides how a move carries memory, as far as that can be told
// before the pod is looked at, and why. The error wraps pod.ErrInvalid if what
// was asked for is not to be had.
func chooseStrategy(asked pod.Strategy) (chosen pod.Strategy, reason string, err error) {
	switch asked {
	case pod.StrategyAuto:
		return pod.StrategyStopCopy, "it is the only one that is available", nil
	case pod.StrategyStopCopy, pod.StrategyCheckpointServer:
		return asked, "it was asked for", nil
	}
	return "", "", fmt.Errorf("%w: strategy %s is not available", pod.ErrInvalid, asked)
}
