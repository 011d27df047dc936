// Package peer has what podd is compared with: runc and podman, moving a
// container between two hosts of a lab by checkpoint, copy and restore, and
// CRIU alone, dumping and restoring a process where it is. Each is given the
// best conditions that its documentation knows of.
//
// Containers have a network namespace on each of the two hosts, with the same
// address; the lab's router has the route to it, which is replaced as soon as
// the container runs on the other host (Link). The root file system is the same
// directory on both, as if they shared storage, so only the images have to be
// copied; they are on tmpfs. Names of namespaces and cgroups are such that
// taking the lab down removes whatever is left.
package peer
