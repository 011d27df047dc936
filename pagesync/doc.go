// Package pagesync sends the memory of a pod's processes to another host: in
// passes while the pod runs, then what is still missing once it is frozen, and
// last what the running pod at the other host asks for. A Source remembers by
// hashes what it has sent; Reader and Writer are the frames that it and the
// pager at the other end exchange.
//
// # What is carried
//
// Private anonymous memory that can be written and not executed, in mappings of
// 64 KiB and more; smaps says which (see mapping.carried), and nothing is carried
// that CRIU would not restore lazily. In the freeze only maps is read, and what a
// survey has not seen shortly before, a new process or a new mapping, is left to
// CRIU; so are the pages that stack pointers point to.
//
// # Passes
//
// PAGEMAP_SCAN finds the pages that have content, process_vm_readv copies them,
// 64 at a time, and their hashes (128 bits, with a secret seed) are compared with
// those of what was sent last. A hash is a claim about the target's store, not
// about the source: that at an address of a process, by its number in the pod, it
// has such content. So it does not matter what becomes of mappings and processes
// in between. Two things end such a claim: a page is in no region of a pass any more
// (the pager may forget it then), or the connection is lost.
//
// The frozen pod's memory is scanned and compared once more. Pages that changed in
// the last passes are first: they are the likeliest to be different and to be used.
//
// # Frames
//
// A frame is a header of 24 bytes, little-endian, and its payload:
//
//	offset 0   u8 kind
//	offset 1   u8 flags
//	offset 2   u16 0
//	offset 4   u32 process, its number in the pod's pid namespace
//	offset 8   u64 address of the first page, or a number (mark, ack)
//	offset 16  u32 number of pages, 4096 bytes each
//	offset 20  u32 length of the payload in bytes, at most MaxPayload
//
// From the source:
//
//	1  regions  payload: {u32 process, u32 0, u64 start, u64 end}..., ascending by
//	            process and start, not overlapping. What a pass goes through; with
//	            FlagFinal the pod is frozen and these are all that is carried.
//	2  data     payload: the pages; with FlagZstd as one zstd frame.
//	3  zero     the pages are all zeros.
//	4  same     after final: what was sent before is what the pages hold.
//	5  absent   after final: the source has no such pages, they read as zeros.
//	6  mark     number: asks for an ack once everything before it is stored.
//	7  done     after final: every page of the regions has been said.
//
// From the pager:
//
//	16 hello    first on every connection; with FlagAgain there was one before and
//	            the source answers wants only.
//	17 ack      number: of a mark, or Done once the content of every page of the
//	            final regions is in the store.
//	18 want     after final: the pages are missing; with FlagFault a fault waits.
//
// Before the final regions data and zero make a page a candidate: the running
// pod may have changed it since. After them data, zero, same and absent make it
// verified: it is what the frozen pod has, and holds for good. Candidates outside
// of the final regions mean nothing. A page may be said more than once, as an
// answer to a want and in its turn; all are equally true.
//
// A connection that ends before the final regions were sent ends the passes: the
// move fails or starts anew. On one that comes after them (FlagAgain) the source
// sends the final regions again, then answers wants, and sends no done: the pager
// asks for every page that it has not verified, and acks Done when there is none.
package pagesync
