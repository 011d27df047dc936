// Package trust says who is who in a cluster: a certificate authority, the
// certificates by which daemons and users know each other, and the tokens by
// which they come to have one. It makes keys, files and TLS configurations;
// who has been admitted and who has been turned out is in the directory.
//
// # Names
//
// An identity is in its certificate as DNS names (RFC 5280, section 4.2.1.6)
// under the made-up domain podd, so that the standard library verifies it like
// any server's: "b.host.podd", "proxy.proxy.podd", "jane.user.podd" together
// with "operator.role.podd". All daemons have DaemonName besides, and the one
// that serves the directory DirectoryName. Peers are verified by name and never
// by address: an address says where something is, not what it is.
//
// # Files
//
// A member keeps in one directory (mode 0700):
//
//	authority.pem      the cluster's CA certificate
//	certificate.pem    its own certificate, and the CA's
//	key.pem            its ed25519 key (PKCS #8, mode 0600), which also signs
//	cluster.json       where the directory and the issuers are
//	cluster.age        the key that checkpoint files are encrypted to; hosts only (0600)
//	authority-key.pem  the CA's key; issuers only (0600)
package trust
