// Package sharedmem carries the memory that processes of a pod share, anonymous shared
// mappings and memfds, to another host while the pod runs: a Source reads it and sends
// what has changed, a Keeper has it at the other end until CRIU has restored the pod.
// So neither CRIU nor the freeze has to do with more of it than what changed last.
//
// # Segments
//
// A segment is an inode of the kernel's own mount of tmpfs. It is found in the mappings
// and descriptors of the pod's processes, and known by its inode number, as it is to CRIU
// (shmid). Segments of System V, of huge pages, and whatever else is not said here, are
// left to CRIU: it carries every segment that the Source does not know when the pod
// freezes.
//
// # Passes
//
// SEEK_DATA finds the pages that a segment has, pread copies them, 64 at a time, and
// their hashes (128 bits, with a secret seed) are compared with those of what was sent
// last, for no kernel tells what has changed in shared memory. The frozen pod's segments
// are compared once more, beside CRIU's dump. Holes stay holes.
//
// # Keeper
//
// The Keeper's process makes a memfd for each segment, as CRIU would. CRIU, when it
// restores the pod, takes that in place of its own (checkpoint/pagefilter/shared.c). The
// process is in the pod's cgroup, so that the memory is the pod's: it allocates every
// page before podd writes to it. It outlives podd, for as long as the directory of the
// images is there: until the pod runs, the memory may be needed for another restore.
//
// It speaks on a socket in that directory, in packets: a request (struct request of
// shared.c) has an answer of 16 bytes, an errno and a pid, and if the operation is
// about one segment, create or get, its descriptor.
//
//	offset 0   u32 operation
//	offset 4   u32 1 if the memfd can be sealed (create)
//	offset 8   u64 number of the segment
//	offset 16  u64 offset in the segment, in bytes (allocate)
//	offset 24  u64 length, in bytes (allocate)
//	offset 32  256 bytes: name of the memfd, filled up with zeros (create)
package sharedmem
