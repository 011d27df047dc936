// Package version knows which build of podd this is. The number is set when a
// release is linked; otherwise it comes from what the Go tool recorded.
package version

import "runtime/debug"

// number is set by -ldflags "-X podd/version.number=...".
var number string

// String is the version, such as "0.1.0" or "devel-3f2c1a9b7d4e".
func String() string {
	if number != "" {
		return number
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" && len(setting.Value) >= 12 {
				return "devel-" + setting.Value[:12]
			}
		}
	}
	return "devel"
}
