// Package daemon is what podd and podproxy have in common as programs: strict
// configuration files, the log, the lock that keeps a second one away, the
// directory they embed or connect to, and the server of their API.
package daemon
