package lab

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"podd/pod"
)

// A link's other nodes all are behind the router, so that is where two nodes
// are parted: it drops what comes from the one's link and would leave by the
// other's. Neither of them notices anything but silence. The rules go with the
// router's namespace.

// Partition makes two nodes lose each other: every packet between them, either
// way, is dropped, also the public addresses' behind the proxy. It does nothing
// when they are parted already.
func (l *Lab) Partition(a, b string) error {
	if err := l.checkPair(a, b); err != nil {
		return err
	}
	for _, rule := range cut(a, b) {
		// Asked first: there is no "add unless it is there".
		if l.filter("-C", rule) == nil {
			continue
		}
		if err := l.filter("-I", rule); err != nil {
			return fmt.Errorf("parting nodes %s and %s: %w", a, b, err)
		}
	}
	return nil
}

// Heal undoes Partition; it does nothing when the two are not parted.
func (l *Lab) Heal(a, b string) error {
	if err := l.checkPair(a, b); err != nil {
		return err
	}
	for _, rule := range cut(a, b) {
		if l.filter("-C", rule) != nil {
			continue
		}
		if err := l.filter("-D", rule); err != nil {
			return fmt.Errorf("healing nodes %s and %s: %w", a, b, err)
		}
	}
	return nil
}

// Isolate parts a node from every other one, the client included.
func (l *Lab) Isolate(node string) error { return l.eachPeer(node, l.Partition) }

// Rejoin undoes Isolate, and every Partition of the node.
func (l *Lab) Rejoin(node string) error { return l.eachPeer(node, l.Heal) }

func (l *Lab) eachPeer(node string, do func(a, b string) error) error {
	var errs []error
	for _, peer := range l.Nodes() {
		if peer != node && peer != Router {
			errs = append(errs, do(node, peer))
		}
	}
	return errors.Join(errs...)
}

// HealAll undoes every Partition and Isolate.
func (l *Lab) HealAll() error {
	if err := l.filter("-F", []string{"FORWARD"}); err != nil {
		return fmt.Errorf("healing the lab's network: %w", err)
	}
	return nil
}

func (l *Lab) checkPair(a, b string) error {
	if err := errors.Join(l.checkNode(a), l.checkNode(b)); err != nil {
		return err
	}
	if a == b || slices.Contains([]string{a, b}, Router) {
		return fmt.Errorf("%w: %s and %s can't be parted: want two nodes other than the router", pod.ErrInvalid, a, b)
	}
	return nil
}

// cut has the rules that part two nodes. The router's end of a link is named
// after the node.
func cut(a, b string) [][]string {
	return [][]string{
		{"FORWARD", "-i", a, "-o", b, "-j", "DROP"},
		{"FORWARD", "-i", b, "-o", a, "-j", "DROP"},
	}
}

// filter runs one command of iptables(8) at the router.
func (l *Lab) filter(command string, rule []string) error {
	argv := append([]string{"iptables", "-w", command}, rule...)
	out, err := l.Command(Router, argv...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s: %s", strings.Join(argv, " "), strings.TrimSpace(string(out)))
	}
	return err
}
