// Package filesync carries directory trees from one host to another over a
// byte stream: several passes while the pod that uses them runs, then a last
// one, while it is frozen, with only the difference. A Source remembers what
// it has sent and sends what changed since; a Sink applies it, whatever the
// stream holds, inside the trees it was given and nowhere else.
//
// # What is carried
//
// Regular files (only the blocks that changed, holes stay holes),
// directories, symbolic links, FIFOs, sockets, overlay whiteouts (character
// device 0:0), other device nodes where a tree allows them, hard links within
// a tree, owners, modes, modification times and those extended attributes that a
// pod can set or cause (see carriedXattr): the user's, POSIX ACLs, file
// capabilities and overlay's opaque mark. Not carried: what belongs to the host,
// access times, and the inode flags of chattr(1).
//
// # What counts as changed
//
// On disk file systems whose page faults move ctime (see trustsCtime) a file
// is unchanged while its stat(2) data are those of the last time it was read.
// Three traps are closed:
//
//   - A change within the clock's granularity of the stat leaves the same
//     ctime behind. As in git's index, a file whose ctime is not clearly older
//     than the moment its reading began is "racily clean": it is compared
//     again, by content, in the next pass.
//   - A store to a shared mapping moves ctime only when it faults, so only the
//     first one after writeback does. Before a file is read its dirty pages
//     are written back (sync_file_range), which write-protects them again; a
//     fault since then makes the ctime racily clean or different.
//   - write(2) moves ctime before it copies. lseek(SEEK_DATA), which takes the
//     inode's lock, waits for such a write before the file is read.
//
// On tmpfs and any other file system stores to mappings leave ctime alone, so
// every file is compared by the hashes of its blocks in every pass.
//
// # Stream format, version 1
//
// A pass is a header, frames and an end frame, and needs no answer; other data
// may follow on the same connection. The header is the eight bytes
// "poddfs\x00\x01", the last one being the version. A frame is its type (one
// byte), the length of its payload (four bytes, big-endian, at most 256 KiB)
// and the payload. In a payload an integer is an unsigned varint and a string
// is its length, a varint, and its bytes.
//
//	T tree      name, first            selects a tree and its root directory;
//	                                   first is 1 in the first pass
//	D dir       path                   selects a directory of the tree, "" the root
//	m mkdir     name                   creates a directory; an existing one is kept
//	f file      name, size, create     opens or creates a regular file, sets its size
//	d data      offset, bytes...       writes into that file
//	h hole      offset, length         makes a hole in it
//	s symlink   name, target           creates a symbolic link
//	n node      name, type, rdev       creates a FIFO, socket or device (mode & S_IFMT)
//	l link      name, path             makes name a hard link to path, from the root
//	r remove    name                   removes name and all below
//	x xattr     name, value            is collected for the next meta frame
//	M meta      name, mode, uid, gid, sec, nsec, keep
//	                                   sets metadata of name, "" being the selected
//	                                   directory; extended attributes become exactly
//	                                   the collected ones unless keep is 1;
//	                                   sec is zigzag-coded; closes the open file
//	c clear                            removes what was in the tree before the first
//	                                   pass and no frame has named
//	E end       frames, sum            the number of frames before it, and the XXH3
//	                                   (64 bits) of header and frames before it
//
// A name is one path element relative to the selected directory. Creating
// replaces whatever is there.
package filesync
