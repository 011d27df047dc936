package datapath

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// ruleComment marks the proxy's rules. They stand in the built-in chains,
// ahead of others: there are few of them and always the same ones.
const ruleComment = "podproxy"

// lockSeconds is how long iptables waits for another one to finish.
const lockSeconds = 10

// chain is the proxy's rules in one chain, in order.
type chain struct {
	table, name string
	rules       [][]string
}

// rules are all there are, however many pods.
func rules(c Config) []chain {
	port := strconv.Itoa(int(c.Port))
	public, virtual, devices := c.PublicPrefix.String(), c.VirtualPrefix.String(), devicePrefix+"+"
	rule := func(specification string) []string {
		return append(strings.Fields(specification), "-m", "comment", "--comment", ruleComment)
	}
	chains := []chain{
		{table: "raw", name: "PREROUTING", rules: [][]string{
			// Labelled packets come from hosts only: the label is no secret.
			rule("-p udp --dport " + port + " -m set ! --match-set " + hostSet + " src -j DROP"),
			// The outer packets of a connection need no entry of their own.
			rule("-p udp --dport " + port + " -j CT --notrack"),
			// A source address comes with its own label only. The devices'
			// rp_filter says so too, but a sysctl daemon may loosen that when
			// a device appears, as systemd's does.
			rule("-i " + devices + " -m rpfilter --invert -j DROP"),
		}},
		{table: "raw", name: "OUTPUT", rules: [][]string{
			rule("-p udp --dport " + port + " -j CT --notrack"),
		}},
		{table: "nat", name: "PREROUTING", rules: [][]string{
			rule("-d " + public + " -j NETMAP --to " + virtual),
		}},
		{table: "nat", name: "POSTROUTING", rules: [][]string{
			rule("-s " + virtual + " ! -d " + virtual + " -j NETMAP --to " + public),
			// From pod to pod by public address: the answer has to come back here.
			rule("-s " + virtual + " -m conntrack --ctstate DNAT -j NETMAP --to " + public),
		}},
		{table: "filter", name: "FORWARD"},
		{table: "filter", name: "INPUT"},
	}
	if !c.AllowUnderlay {
		chains[4].rules = [][]string{rule("-i " + devices + " -m set --match-set " + hostSet + " dst -j DROP")}
		chains[5].rules = [][]string{rule("-i " + devices + " -m conntrack ! --ctstate RELATED,ESTABLISHED" +
			" -m set ! --match-set " + serviceSet + " dst,dst -j DROP")}
	}
	return chains
}

func openIPTables() (*iptables.IPTables, error) {
	ipt, err := iptables.New(iptables.IPFamily(iptables.ProtocolIPv4), iptables.Timeout(lockSeconds))
	if err != nil {
		return nil, fmt.Errorf("running iptables: %w", err)
	}
	return ipt, nil
}

// ensureRules makes the proxy's rules in every chain exactly the wanted ones.
// A chain that is right is left alone.
func (d *Datapath) ensureRules() error {
	ipt, err := openIPTables()
	if err != nil {
		return err
	}
	for _, c := range rules(d.config) {
		right, err := c.isRight(ipt)
		if err != nil {
			return err
		}
		if right {
			continue
		}
		d.kernel.changes.Add(1)
		if err := c.remove(ipt); err != nil {
			return err
		}
		for i, r := range c.rules {
			if err := ipt.Insert(c.table, c.name, i+1, r...); err != nil {
				return fmt.Errorf("adding iptables rule to %s %s: %w", c.table, c.name, err)
			}
		}
	}
	return nil
}

// isRight reports whether the rules are all there and no others of ours.
func (c chain) isRight(ipt *iptables.IPTables) (bool, error) {
	positions, err := c.positions(ipt)
	if err != nil || len(positions) != len(c.rules) {
		return false, err
	}
	for _, r := range c.rules {
		exists, err := ipt.Exists(c.table, c.name, r...)
		if err != nil {
			return false, fmt.Errorf("checking iptables rule in %s %s: %w", c.table, c.name, err)
		}
		if !exists {
			return false, nil
		}
	}
	return true, nil
}

// positions returns the numbers of the proxy's rules in the chain.
func (c chain) positions(ipt *iptables.IPTables) ([]int, error) {
	lines, err := ipt.List(c.table, c.name)
	if err != nil {
		return nil, fmt.Errorf("listing iptables rules of %s %s: %w", c.table, c.name, err)
	}
	var positions []int
	number := 0
	for _, line := range lines {
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		number++
		fields := strings.Fields(line)
		if i := slices.Index(fields, "--comment"); i >= 0 && i+1 < len(fields) && strings.Trim(fields[i+1], `"`) == ruleComment {
			positions = append(positions, number)
		}
	}
	return positions, nil
}

// remove deletes the proxy's rules from the chain.
func (c chain) remove(ipt *iptables.IPTables) error {
	positions, err := c.positions(ipt)
	if err != nil {
		return err
	}
	// From the end, so that the other numbers stay what they are.
	for _, position := range slices.Backward(positions) {
		if err := ipt.DeleteById(c.table, c.name, position); err != nil {
			return fmt.Errorf("deleting iptables rule %d of %s %s: %w", position, c.table, c.name, err)
		}
	}
	return nil
}

// removeRules deletes all of the proxy's rules.
func removeRules(c Config) error {
	ipt, err := openIPTables()
	if err != nil {
		return err
	}
	var failures []error
	for _, chain := range rules(c) {
		failures = append(failures, chain.remove(ipt))
	}
	return errors.Join(failures...)
}

// countRules returns how many rules the proxy has in the kernel.
func countRules(c Config) (int, error) {
	ipt, err := openIPTables()
	if err != nil {
		return 0, err
	}
	count := 0
	for _, chain := range rules(c) {
		positions, err := chain.positions(ipt)
		if err != nil {
			return 0, err
		}
		count += len(positions)
	}
	return count, nil
}
