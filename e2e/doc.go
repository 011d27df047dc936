// Package e2e moves real programs between the hosts of a lab and asserts what
// their users care about: no byte lost, no connection broken, no state gone.
// It holds tests only, behind the build tag e2e; they need root and CRIU.
//
// All tests share one lab of three hosts, a, b and c, that TestMain brings up;
// a second process, the guard, takes it down however the tests end. Tests run
// one after the other: they share two processors, and some restart daemons.
package e2e
