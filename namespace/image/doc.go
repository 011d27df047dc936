// Package image is a host's store of images: it imports OCI layouts and the
// archives of docker save and podman save, and keeps every layer unpacked once,
// ready to be a lower directory of an overlay. It also knows the two images
// that need no import, "host" and "dir:/path".
//
// # On disk
//
// Under the directory of the store:
//
//	lock                         held for as long as a store is open
//	index.json                   the images: names, digests, layers, configuration
//	layers/ALGORITHM/HEX/        an unpacked layer, named by its diff ID
//	tmp/                         what an import has not finished; emptied by Open
//
// The index is replaced as a whole and only after every layer it names is
// complete and on disk, so a crash at any instruction leaves either the old
// state or the new one, and at worst unreferenced layers, which the next
// import, removal or Open deletes. The layers directory is closed to everyone
// but root: the set-id programs of an image must not be reachable for the
// users of the host.
//
// # Trust
//
// Nothing in an archive is trusted. Every blob is checked against its digest
// and every layer against its diff ID before it is given its name; counts and
// sizes are bounded by Limits; and the unpacker resolves every path with
// openat2(RESOLVE_IN_ROOT), so that symbolic links in a layer lead nowhere
// outside of it, whatever the order of entries. Formats: the OCI image
// specification v1.1 (layout, manifest, config, layer) and Docker's image
// specification v1.2 (manifest.json).
package image
