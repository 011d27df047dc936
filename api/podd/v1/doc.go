// Package poddv1 is generated from podd.proto, the API of podd and podproxy, and
// transfer.proto, the conversation of a move. Only this comment is written by
// hand.
package poddv1
