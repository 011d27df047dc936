// Package poddv1connect is generated from the services of podd.proto: clients
// of them, and the interfaces that podd and podproxy implement. Only this
// comment is written by hand.
package poddv1connect
