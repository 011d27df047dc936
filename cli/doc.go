// Package cli is podctl: its commands, what they print and how they exit. It
// speaks the API to one podd, which passes calls on to the hosts they are about.
//
// # Output
//
// What a command was asked for goes to standard output, everything else to
// standard error. Wherever something is printed, -o chooses table, wide, json,
// yaml or name. JSON and YAML keys are camelCase and stable: sizes are whole
// bytes with the suffix Bytes, durations are milliseconds with the suffix Ms
// (numbers with up to three decimals), times are RFC 3339. A list is always an
// array; inspect prints an object for one pod and an array for several.
//
// # Exit codes
//
// As podman's: 125 when podctl or podd failed or podctl was used wrongly, 126
// when the command in the pod can't be executed, 127 when it isn't found,
// otherwise the command's own for those that wait for one (run in the
// foreground, exec, attach, wait). A signal that ends podctl itself gives 128
// plus its number. "move --dry-run" gives 1 for a pod that can't be moved.
//
// # Streams and moves
//
// A stream about a pod ends when the pod leaves its host. Sessions reconnect by
// themselves: the output's position says where to go on reading, and typed
// input that did not reach the command is sent again.
package cli
