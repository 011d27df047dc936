// Package workload is what the end-to-end tests, the benchmarks and the demo put
// on pods: clients that check every byte they get while a pod moves under them
// and measure the longest silence, the servers they need where no real program
// fits, and the kitchen sink, a C program in every state that a checkpoint
// should carry.
//
// Every client is used in the same way: New..., Run in a goroutine, wait for
// Started, move the pod, Lap or Result, Stop, and look at what Run returns. Run
// returns nil only if everything that was received was right. A client reaches
// its server through a DialFunc, so that it can sit in any network namespace.
//
// cmd/loadgen runs them from a command line; vncclient is the client for remote
// desktops.
package workload
