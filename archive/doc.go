// Package archive is the format of checkpoint files: a pod's memory, files and
// specification in one stream that is signed by the host that wrote it and
// encrypted to whoever may restore it. It knows nothing of pods running; what
// the members of a file mean is the business of podd.
//
// # Layout, version 1
//
//	8 bytes  "PODDCKP\x01", the last one being the version
//	u32      size of the header, big-endian, at most 256 KiB
//	         the header: JSON of type Header
//	u32      size of the certificate chain, big-endian, at most 64 KiB
//	         the chain of the signer, in PEM, its own certificate first
//	64 bytes Ed25519 signature (RFC 8032) of everything before it
//	         the body: age (age-encryption.org/v1) of
//	             zstd (RFC 8878) of
//	                 the members' content, in the header's order, nothing between
//
// The header is readable by everybody and so tells only what is needed to judge
// a file without opening it: whose pod it is, when and where it was written,
// what it needs of a host, and size and SHA-256 of every member. Command,
// environment, addresses, files and memory are in the members.
//
// # What protects what
//
// The signature covers the header, and by the digests in it the plaintext of
// every member. It does not cover the encryption, so a file can be encrypted
// anew for another recipient (Reseal) by whoever can read it and stays
// authentic. Digests of plaintext would let somebody who guesses a small member
// confirm it, so the writer puts a random value into each that could be guessed.
//
// # Reading what is not trusted
//
// ReadEnvelope takes nothing but the bounded clear part. Verify must succeed
// before anything in it is believed; from then on the declared sizes bound
// what may follow (MaxBody). A Reader returns the end of a member only when its
// digest is right, and the end of the file only when nothing is left over, so a
// caller that reads a file once from end to end knows that all of it is what
// the signer wrote.
package archive
