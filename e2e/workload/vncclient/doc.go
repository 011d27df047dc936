// Package vncclient is a viewer of remote desktops without a screen: it asks
// for every change of the picture, keeps the picture, and types and clicks. It
// counts what arrives and measures the longest time without any of it, which
// is what a person in front of a viewer would notice of a move.
//
// It speaks RFB 3.8 (RFC 6143) without authentication, with the encodings Raw
// and CopyRect and the DesktopSize pseudo-encoding.
package vncclient
