package lab

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"podd/pod"
)

// parseRate reads a rate as tc(8) writes it and returns bytes a second, 0 for
// the empty string. The error wraps pod.ErrInvalid.
func parseRate(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	invalid := fmt.Errorf("%w: link rate %q: want for example 100mbit or 1gbit", pod.ErrInvalid, s)
	number, ok := strings.CutSuffix(strings.ToLower(s), "bit")
	if !ok {
		return 0, invalid
	}
	factor := 1.0
	for unit, f := range map[string]float64{"k": 1e3, "m": 1e6, "g": 1e9} {
		if n, ok := strings.CutSuffix(number, unit); ok {
			number, factor = n, f
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v > 0) {
		return 0, invalid
	}
	// Below the least the daemons would time out; above the most the kernel's
	// 32-bit field for bytes a second would overflow.
	const least, most = 64e3 / 8, math.MaxUint32
	rate := v * factor / 8
	if rate < least || rate > most {
		return 0, fmt.Errorf("%w: it is outside 64kbit to 34gbit", invalid)
	}
	return uint64(rate), nil
}

// limitRate puts a token bucket filter (tc-tbf(8)) on what leaves a device.
func limitRate(device netlink.Link, rate uint64) error {
	// The bucket must hold what comes in one tick, and a full GSO packet.
	burst := max(rate/100, 128<<10)
	// What may wait: 50 ms, as in a router with ordinary buffers.
	limit := burst + rate/20
	return netlink.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: device.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
		},
		Rate:   rate,
		Limit:  uint32(min(limit, math.MaxUint32)),
		Buffer: netlink.Xmittime(rate, uint32(burst)),
	})
}
