// Package api carries the domain across the network: the protobuf messages and
// Connect services of podd/v1, the conversion of domain types to and from
// them, and the mapping of sentinel errors to status codes and back.
package api
