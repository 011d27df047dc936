// Package firewall keeps a few iptables rules as they are wanted, wherever
// they may have come from: it marks its owner's rules with a comment, and
// leaves all others alone.
//
// The rules stand at the head of the built-in chains. iptables acts on the
// network namespace of the calling thread.
package firewall

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// lockSeconds is how long iptables waits for another one to finish.
const lockSeconds = 10

// Chain is an owner's rules in one chain, in order.
type Chain struct {
	Table, Name string
	// Rules are written as after iptables -A CHAIN. No word in them may
	// contain a space.
	Rules []string
}

// Owner has the rules whose comment is its name.
type Owner string

// Ensure makes the owner's rules in the given chains exactly those given, and
// returns how many chains it had to change. A chain that is right is left
// alone, so nothing is open for a moment when nothing has changed.
func (o Owner) Ensure(chains []Chain) (changed int, err error) {
	ipt, err := open()
	if err != nil {
		return 0, err
	}
	for _, c := range chains {
		right, err := o.isRight(ipt, c)
		if err != nil {
			return changed, err
		}
		if right {
			continue
		}
		changed++
		if err := o.remove(ipt, c); err != nil {
			return changed, err
		}
		for i, rule := range c.Rules {
			if err := ipt.Insert(c.Table, c.Name, i+1, o.words(rule)...); err != nil {
				return changed, fmt.Errorf("adding iptables rule to %s %s: %w", c.Table, c.Name, err)
			}
		}
	}
	return changed, nil
}

// Remove deletes the owner's rules from the given chains, whatever they are.
func (o Owner) Remove(chains []Chain) error {
	ipt, err := open()
	if err != nil {
		return err
	}
	var failures []error
	for _, c := range chains {
		failures = append(failures, o.remove(ipt, c))
	}
	return errors.Join(failures...)
}

// Count returns how many rules the owner has in the given chains.
func (o Owner) Count(chains []Chain) (int, error) {
	ipt, err := open()
	if err != nil {
		return 0, err
	}
	count := 0
	for _, c := range chains {
		positions, err := o.positions(ipt, c)
		if err != nil {
			return 0, err
		}
		count += len(positions)
	}
	return count, nil
}

func open() (*iptables.IPTables, error) {
	ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(lockSeconds))
	if err != nil {
		return nil, fmt.Errorf("running iptables: %w", err)
	}
	return ipt, nil
}

func (o Owner) words(rule string) []string {
	return append(strings.Fields(rule), "-m", "comment", "--comment", string(o))
}

// isRight reports whether the rules are all there and no others of the owner's.
func (o Owner) isRight(ipt *iptables.IPTables, c Chain) (bool, error) {
	positions, err := o.positions(ipt, c)
	if err != nil || len(positions) != len(c.Rules) {
		return false, err
	}
	for _, rule := range c.Rules {
		// iptables compares, because it prints rules in words of its own.
		exists, err := ipt.Exists(c.Table, c.Name, o.words(rule)...)
		if err != nil {
			return false, fmt.Errorf("checking iptables rule in %s %s: %w", c.Table, c.Name, err)
		}
		if !exists {
			return false, nil
		}
	}
	return true, nil
}

// positions returns the numbers of the owner's rules in the chain.
func (o Owner) positions(ipt *iptables.IPTables, c Chain) ([]int, error) {
	lines, err := ipt.List(c.Table, c.Name)
	if err != nil {
		return nil, fmt.Errorf("listing iptables rules of %s %s: %w", c.Table, c.Name, err)
	}
	return o.find(lines), nil
}

// find returns the numbers of the owner's rules in what iptables -S prints.
func (o Owner) find(lines []string) []int {
	var positions []int
	number := 0
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "-A" {
			continue
		}
		number++
		i := slices.Index(fields, "--comment")
		if i >= 0 && i+1 < len(fields) && (fields[i+1] == string(o) || fields[i+1] == `"`+string(o)+`"`) {
			positions = append(positions, number)
		}
	}
	return positions
}

// remove deletes the owner's rules from the chain.
func (o Owner) remove(ipt *iptables.IPTables, c Chain) error {
	positions, err := o.positions(ipt, c)
	if err != nil {
		return err
	}
	// From the end, so that the other numbers stay what they are.
	for _, position := range slices.Backward(positions) {
		if err := ipt.DeleteById(c.Table, c.Name, position); err != nil {
			return fmt.Errorf("deleting iptables rule %d of %s %s: %w", position, c.Table, c.Name, err)
		}
	}
	return nil
}
