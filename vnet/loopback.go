package vnet

import (
	"encoding/binary"
	"fmt"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// criuMark is what CRIU marks the packets with that it sends itself, to bring
// a socket into the state of one whose other end has closed (SOCCR_MARK in
// soccr/soccr.h).
const criuMark = 0xC114

// loopbackTable is the nf_tables table that blocks the loopback device.
const loopbackTable = "podd-block"

// verdictDrop is NF_DROP (linux/netfilter.h).
const verdictDrop = 0

// prepareLoopback makes the table. It is dormant until the pod is blocked, so a
// running pod does not pay for it. Waking it or putting it to sleep takes
// 0.05-0.25 ms, most of it for the hooks. Removing it would take 10 ms: the
// socket that has asked for that can't be closed within the kernel's grace
// period.
//
// Packets are dropped at both ends: on sending, so that TCP knows that a
// segment has not left and sends it when it may, and on receiving, for what is
// under way.
func prepareLoopback(c *netns.Conn) error {
	err := c.SendBatch(
		setTable(unix.NFT_TABLE_F_DORMANT),
		newChain("output", unix.NF_INET_LOCAL_OUT), newRule("output", unix.NFT_META_OIF),
		newChain("input", unix.NF_INET_LOCAL_IN), newRule("input", unix.NFT_META_IIF),
	)
	if err != nil {
		return fmt.Errorf("preparing the block of the loopback device: %w", err)
	}
	return nil
}

// blockLoopback drops what the pod sends to itself, by any of its addresses,
// but not what CRIU sends.
func blockLoopback(c *netns.Conn) error {
	if err := switchLoopback(c, 0); err != nil {
		return fmt.Errorf("blocking the loopback device: %w", err)
	}
	return nil
}

func freeLoopback(c *netns.Conn) error {
	if err := switchLoopback(c, unix.NFT_TABLE_F_DORMANT); err != nil {
		return fmt.Errorf("freeing the loopback device: %w", err)
	}
	return nil
}

func loopbackBlocked(c *netns.Conn) (bool, error) {
	flags, err := tableFlags(c)
	return err == nil && flags&unix.NFT_TABLE_F_DORMANT == 0, err
}

func switchLoopback(c *netns.Conn, flags uint32) error {
	// The kernel would make an empty table if there were none.
	if is, err := tableFlags(c); err != nil || is == flags {
		return err
	}
	return c.SendBatch(setTable(flags))
}

func tableFlags(c *netns.Conn) (uint32, error) {
	attributes, err := c.Query(message(unix.NFT_MSG_GETTABLE, 0, text(unix.NFTA_TABLE_NAME, loopbackTable)))
	if err != nil {
		return 0, fmt.Errorf("looking for table %s: %w", loopbackTable, err)
	}
	flags := attributes[unix.NFTA_TABLE_FLAGS]
	if len(flags) != 4 {
		return 0, fmt.Errorf("looking for table %s: %d bytes of flags", loopbackTable, len(flags))
	}
	return binary.BigEndian.Uint32(flags), nil
}

// setTable asks for a table, or for a change of its flags.
func setTable(flags uint32) netns.Message {
	return message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE,
		text(unix.NFTA_TABLE_NAME, loopbackTable), number(unix.NFTA_TABLE_FLAGS, flags))
}

// firstPriority is NF_IP_PRI_FIRST (linux/netfilter_ipv4.h), which is negative.
const firstPriority = 1 << 31

// newChain asks for a chain that packets of IPv4 and IPv6 pass at hook.
func newChain(name string, hook uint32) netns.Message {
	return message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE,
		text(unix.NFTA_CHAIN_TABLE, loopbackTable),
		text(unix.NFTA_CHAIN_NAME, name),
		text(unix.NFTA_CHAIN_TYPE, "filter"),
		nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, hook), number(unix.NFTA_HOOK_PRIORITY, firstPriority)),
	)
}

// newRule asks for the rule that nft(8) writes as
//
//	iif lo meta mark != 0xC114 drop
//
// where device chooses between iif and oif.
func newRule(chain string, device uint32) netns.Message {
	const loopback = 1 // LOOPBACK_IFINDEX, in every namespace
	return message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
		text(unix.NFTA_RULE_TABLE, loopbackTable),
		text(unix.NFTA_RULE_CHAIN, chain),
		nested(unix.NFTA_RULE_EXPRESSIONS,
			load(device), compare(unix.NFT_CMP_EQ, loopback),
			load(unix.NFT_META_MARK), compare(unix.NFT_CMP_NEQ, criuMark),
			expression("immediate",
				number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
				nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, number(unix.NFTA_VERDICT_CODE, verdictDrop)))),
		),
	)
}

// load puts what is known about a packet into the first register.
func load(key uint32) *nl.RtAttr {
	return expression("meta", number(unix.NFTA_META_KEY, key), number(unix.NFTA_META_DREG, unix.NFT_REG_1))
}

// compare ends the rule unless the first register compares so with value.
func compare(operator, value uint32) *nl.RtAttr {
	return expression("cmp",
		number(unix.NFTA_CMP_SREG, unix.NFT_REG_1), number(unix.NFTA_CMP_OP, operator),
		nested(unix.NFTA_CMP_DATA, nl.NewRtAttr(unix.NFTA_DATA_VALUE, nl.Uint32Attr(value))))
}

func expression(name string, data ...*nl.RtAttr) *nl.RtAttr {
	return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, data...))
}

func message(kind, flags int, parts ...*nl.RtAttr) netns.Message {
	return netns.Message{Subsystem: unix.NFNL_SUBSYS_NFTABLES, Type: kind, Flags: flags, Family: unix.NFPROTO_INET, Parts: parts}
}

func text(kind int, value string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(value)) }

// number is in network byte order, as all numbers of nf_tables are that are
// not compared with a packet's.
func number(kind int, value uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.BEUint32Attr(value)) }

func nested(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	return netns.Attribute(kind|unix.NLA_F_NESTED, children...)
}
