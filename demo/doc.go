// Package demo shows what podd does to somebody who has never heard of it: it
// makes a lab, starts a desktop on one host, connects a viewer, moves the
// desktop from host to host while the viewer looks on, and says what happens.
//
// It does nothing that its reader could not do: pods are run, moved and looked
// into by the podctl program, names are asked for in DNS, and the viewer is an
// ordinary VNC client at the lab's client node. Everything it prints was
// measured or asked for, and what it claims (one connection, one shell, one
// name) is checked before it is said.
package demo
