// Package fault makes a daemon fail at a named point when a test asks for it.
// Only a build with the tag "faults" can: in any other one Watch and At are
// empty functions, which the compiler removes.
//
// A test writes what is to happen into the file "faults" of the daemon's run
// directory, one "POINT ACTION" a line, at any time. Every line is carried out
// once and removed first, so a daemon that was killed by it can be started again.
//
// The points are "source:STAGE", "target:STAGE" and "proxy:STAGE" with the
// stages of a move, at which that side begins the stage, and these between two
// stages: "source:restore-asked", when the target may commit any time,
// "source:committed", when the source has heard of the commit, and
// "target:committed", when the pod is the target's but does not run yet,
// "target:adopt", when its record is written, "target:resuming", when CRIU is about
// to let it run, "target:unheard", when it runs and its network is still blocked,
// "target:resumed", when it can be heard and its images are still there, and
// "source:memory" and "target:memory", when the rest of its memory follows;
// "target:recover-pod", "target:recover-restore" and "target:recover-memory", when
// podd takes over or restores a pod that it finds, or takes over its pager. Checkpoint files have "checkpoint:frozen" and
// "checkpoint:confirmed", "restore:unpacked" and "restore:committed".
package fault
