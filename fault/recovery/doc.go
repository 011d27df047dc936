// Package recovery is the table of what becomes of a move when something fails:
// every moment of it, every one who takes part, every way to fail. ARCHITECTURE.md
// shows the table and the end-to-end tests make each of its cells happen, both
// from the data here, so that neither can say what the other doesn't.
//
// Change the data, run "go test ./fault/recovery -update", which writes the
// table into ARCHITECTURE.md, and "just faults", which tries it.
package recovery
