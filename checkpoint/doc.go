// Package checkpoint is the conversation with CRIU: it freezes and dumps a
// pod on the source, carries the image, and restores it on the target. Both
// sides stop at a hold, source intact and target complete but silent, so that
// the caller decides between them before anything irreversible happens.
//
// # Why not libcontainer's checkpoint or go-criu's client
//
// Neither can hold a dump at "post-dump", choose the network lock method or
// hand CRIU a connected page server, and both leave the pod frozen on some
// errors. The driver here speaks the same protocol (one "criu swrk" process
// per operation, protobuf messages on a SEQPACKET socket) with the message
// types of go-criu.
//
// # The source
//
//	d, err := engine.PrepareDump(ctx, options) // CRIU is up, the pod runs
//	result, err := d.Run(ctx)                  // the pod is frozen and dumped: held
//	err = d.Commit(ctx)                        // it dies without a word on the wire
//	err = d.Abort()                            // or: it goes on where it was
//
// Order of events in Run, and the hook called in each:
//
//	pre-dump         Freeze    as late as possible: CRIU's own start-up is over
//	query-ext-files  Block     all tasks are seized, no socket was read yet
//	(dump)                     memory goes to Pages, the rest to ImagesDir
//	post-dump        Freeze    again, so that the death of CRIU can't thaw the pod
//
// A failure anywhere before the hold rolls back inside Run: CRIU lets go of
// the tasks, then Unblock and Thaw are called. CRIU is never killed while it
// holds a dump: it leaves the TCP sockets in repair mode then, and the program
// would resume with dead connections. It is ended by closing its sockets,
// which makes it roll back by itself. That also happens when this process
// dies; the cgroup stays frozen then. Recover mends what a killed CRIU leaves.
//
// # The target
//
//	r, err := engine.PrepareRestore(ctx, options) // CRIU waits for images in the pod's cgroup
//	pid, err := r.Run(ctx)                        // everything is restored and adopted: held
//	err = r.Commit(ctx)                           // Release is called, tasks run
//	err = r.Abort()                               // or: everything is killed, silently
//
// # The image
//
// CRIU's memory pages go over a stream of frames while the dump runs
// (DumpOptions.Pages to ReceivePages). The other files are small and follow
// it (SendImages to ReceiveImages). Both formats end themselves, so they can
// share one connection.
//
// # Memory that is not in the image
//
// Copying pages is what takes time in a dump and in a restore, so the caller may
// carry memory itself. A small library in CRIU (pagefilter) keeps the ranges that
// DumpOptions.LeaveOut names out of what CRIU asks the kernel for; the dump neither
// copies them nor looks at their page tables, nor are they gone through for smaps
// (mappings.go). RestoreOptions.Lazy gets a userfaultfd of each process, and whoever has them fills the
// memory in, before or after the pod runs. Pages that CRIU did dump are restored by
// it, whatever it calls lazy: ReceivePages takes that mark off.
//
// The userfaultfds are CRIU's, of "lazy pages", or the library's, which makes a restore
// of many mappings faster (inplace.go). Nothing may be there then that was left out when it is
// registered, for it would hide what was at the source. So CRIU carries the pages that the kernel
// writes to while threads are restored (pagefilter/rseq.c), and the hold is not reached if there
// is any other (ErrTouched).
package checkpoint
