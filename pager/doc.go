// Package pager gives a pod that was restored without its memory that memory: at
// once where the pod touches it, the rest in the background. It is a process of
// its own beside podd, since a pod whose pager is gone for good would read zeros
// where it had data.
//
// # Content
//
// The source's frames (package pagesync) go into a store: for each process of the
// frozen pod a sparse file whose offsets are addresses, and a byte for each page
// that says what is known of it (content.go). Until the final regions all of it is
// conjecture; from then on a page is filled in once it is verified, and what is
// verified never changes. The source can fill what the regions it announced hold,
// and of the host's memory only what package reserve lets it.
//
// # Spaces
//
// A space is one address space that is filled: one that CRIU made, or the child of
// one (space.go). It knows which content belongs at which addresses, in extents
// that mremap(2) moves about, and for each page of content whether the space still
// lacks it. A page stops lacking when it was copied, when the program turns out to
// have one there already (EEXIST), and when the program has given it up (madvise,
// munmap): then it reads as zeros and is never filled again. A child begins with
// what its parent had at the fork, for the kernel refuses copies to the parent
// from the fork on until the event is read.
//
// One thread reads the events of all spaces and does all copying (handler.go,
// fill.go): the kernel's events are safe only for who does not copy between reading
// an event and obeying it (userfaultfd(2): "optimal for single threaded
// non-cooperative userfaultfd manager implementations"), and one at a time, since who
// caused an event goes on once it was read. Faults go first, then the
// pages after them, then what arrived last and was therefore changed last, then,
// once the pod has run for a moment, everything else, in chunks that are small while
// there are faults.
//
// # Nothing is lost with a process
//
// Everything a pager knows is in files on tmpfs, mapped shared: the content, the
// spaces, and the events themselves, which the kernel writes into such a file as
// the pager reads them (journal.go). The userfaultfds are also held by a keeper, a
// process that shares the pager's table of descriptors and does nothing
// (keeper.go). The next pager takes them from there, obeys the events that were
// read but not yet obeyed, wakes everybody who waits, and goes on. podd starts it
// when the pager has died; while podd is dead, or both are, the pod's threads that
// need a page wait for it. Until the pod runs podd has the userfaultfds, too, and
// gives them to a pager that finds no keeper (spare.go). Later the loss of both is
// the loss of memory, and podd freezes the pod as it learns of it.
//
// While pages are missing and the source can't be reached the pod is frozen. So it
// is while it forks faster than children can be filled: their number is bounded.
package pager
