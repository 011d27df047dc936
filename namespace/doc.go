// Package namespace makes a pod on this host: its private namespaces, its root
// file system, its limits, and the init that looks after its main command. It
// also finds running pods again, runs further commands in them, reads their
// output, and takes everything away when they end.
//
// # A container
//
// One incarnation of a pod on this host is a Container, identified by
// NAME.EPOCH. There are two ways to bring one to life, which share everything
// but the first process:
//
//	Prepare, Start           a new pod: libcontainer makes the namespaces and the init
//	Prepare(Restore), Mount, a pod that comes from elsewhere: its files arrive in
//	JoinCgroup, Adopt        Trees, CRIU makes the processes
//
// The rest does not care how it came about. libcontainer (runc's library) is
// used to build the namespaces; its own record of a container is not needed
// afterwards, so a restored pod is no special case.
//
// # Files
//
//	STATE/pods/ID/container.json   what was asked for, and the process; mode 0600
//	STATE/pods/ID/upper, work      the writable layer of the overlay
//	STATE/pods/ID/volumes/NAME     named volumes
//	RUN/containers/ID/rootfs       where the overlay is mounted
//	RUN/containers/ID/volatile     a tmpfs with the pod's /dev, /tmp and /run
//	RUN/libcontainer/ID            libcontainer's state
//	cgroup PARENT/ID
//
// The names of all of them follow from the ID alone, so whatever a crash leaves
// behind can be found and removed without a record of it.
//
// # What makes a pod movable
//
// CRIU carries what lies inside a pod, and is told where to find the rest
// (ExternalMounts). So no descriptor of the pod leads outside: the init opens
// its standard streams inside, output goes to files in the pod and everything
// else through sockets that podd may connect to and leave at any time. The
// overlay has index=on,nfs_export=on, without which no inotify watch can be
// dumped. /dev, /tmp and /run are not tmpfs mounts of the pod, which CRIU would
// pack with tar and gzip while the pod is frozen, but directories on a tmpfs of
// the host. Kernel features CRIU can't dump (nested user namespaces, io_uring)
// are refused by the system call filter in a way that programs cope with.
//
// # Trust
//
// Everything in a pod's tree is the pod's to change: the package opens nothing
// there except with openat2(2), without following symbolic links or confined to
// the tree, and checks what it opened.
package namespace
