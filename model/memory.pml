/*
 * Memory that follows a pod: what happens after the commit of a move by
 * post-copy, between the podd of the source, the podd of the target, the pager
 * and its keeper. move.pml ends where this begins. README.md says what is
 * modelled and how to run it.
 */

/* ---- decisions: 1 is what the code does, as in move.pml ---- */

/* followMemory in podd/source_memory.go: the source's frozen copy stays until nobody
 * needs memory of it. */
#ifndef COPY_STAYS
#define COPY_STAYS 1
#endif

/* keepMemories in podd/recover_memory.go: so it does when the source's podd is started
 * again, although it is a superseded incarnation. */
#ifndef RECOVERY_KEEPS
#define RECOVERY_KEEPS 1
#endif

/* startKeeper in pager/keeper.go: the userfaultfds outlive the pager. */
#ifndef KEEPER
#define KEEPER 1
#endif

/* spare in pager/spare.go: podd has them, too, until the pager knows that the pod runs. */
#ifndef SPARE
#define SPARE 1
#endif

/* adoptPager in podd/recover_memory.go: a podd that is started finds the pager, or starts
 * another one. */
#ifndef ADOPTS
#define ADOPTS 1
#endif

/* freeze in pager/link.go: a pod that lacks memory of a source that is not reached is
 * frozen, and said to be. */
#ifndef STALLS
#define STALLS 1
#endif

/* RemoveHost in directory/register.go: a host that is gone is removed, and its moves are
 * closed, once the pod that needs it is. */
#ifndef CLOSES
#define CLOSES 1
#endif

/* tellMemories in podd/recover_memory.go: that all memory is there is told by the next
 * podd, if one ends before it could. */
#ifndef TELLS_AGAIN
#define TELLS_AGAIN 1
#endif

#ifndef FAULTS
#define FAULTS 2
#endif
#define PAGES 2

/* Of the pod's copy on the target: only its images are there; restored and held by CRIU;
 * it runs; frozen for want of memory; ended or removed. */
mtype:phase = { images, held, runs, stalled, ended };
mtype:phase phase = held;

/* The directory's record of the move. */
bool pending = true, closed = false;

/* The source: its podd, the frozen copy, the machine. */
bool source_up = true, copy = true, machine = true;
bool link = true;

/* The target: who has the userfaultfds, and what the pager knows. */
bool target_up = true, pager_up = true;
bool keeper = KEEPER, spare = SPARE;
bool told = false;	/* the pager, that the pod runs */
bool over = false;	/* the pager has filled everything */
bool here[PAGES];	/* on the target */

byte faults = FAULTS;

#define missing		(!here[0] || !here[1])
#define descriptors	(pager_up || keeper || spare)
#define reached		(link && machine && source_up && copy)
/* What a pod touches that is missing reads as zeros when nobody has the descriptor. */
#define zeros		(phase == runs && missing && !descriptors)
#define needed		(pending && phase != ended)

inline drop_copy() {
	assert(!missing || phase == ended);	/* or nobody has it any more */
	copy = false
}

/* The source's podd, from the commit on, or started again. */
active proctype source() {
	bool again = false;
	do
	:: atomic { source_up && machine && copy && !again && !COPY_STAYS -> drop_copy() }
	:: atomic { source_up && machine && copy && again && !RECOVERY_KEEPS -> drop_copy() }
	:: atomic { source_up && machine && copy && (!needed || !missing) -> drop_copy() }
	:: atomic { source_up && machine && !copy && !closed -> closed = true; pending = false }
	:: atomic { faults > 0 && source_up && machine -> faults--; source_up = false; again = true }
	:: atomic { !source_up && machine -> source_up = true }
	:: atomic { faults > 0 && machine -> faults--; machine = false; copy = false }
	od
}

/* The link between the hosts. */
active proctype wire() {
	do
	:: atomic { faults > 0 && link -> faults--; link = false }
	:: atomic { !link -> link = true }
	od
}

/* The target's podd, and CRIU, which ends with it as long as it holds the copy. */
active proctype target() {
	bool restarted = false;
	do
	:: atomic { target_up && phase == images && pager_up -> phase = held; spare = SPARE }
	:: atomic { target_up && phase == held && pager_up -> phase = runs }
	:: atomic { target_up && (phase == runs || phase == stalled) && pager_up && !told -> told = true; spare = false }
	/* The pager died: another one goes on with what the keeper has, or podd. */
	:: atomic { target_up && !pager_up && phase != ended && !over && (keeper || spare || phase == images) && (ADOPTS || !restarted) ->
		pager_up = true; keeper = KEEPER }
	/* All is there, and the journal is told. */
	:: atomic { target_up && phase != ended && over && pending && (TELLS_AGAIN || !restarted) -> pending = false }
	:: atomic { target_up && phase == ended && (pending || descriptors) ->
		pager_up = false; keeper = false; spare = false; pending = false }
	:: atomic { faults > 0 && target_up ->
		faults--; target_up = false; restarted = true; spare = false;
		if
		:: phase == held -> phase = images; keeper = keeper && pager_up	/* what it had is forgotten */
		:: else
		fi }
	:: atomic { !target_up -> target_up = true }
	od
}

/* The pager: it asks for what is missing. When all is there it ends with its keeper,
 * whatever podd does. */
active proctype pager() {
	do
	:: atomic { pager_up && reached && !here[0] -> here[0] = true }
	:: atomic { pager_up && reached && !here[1] -> here[1] = true }
	:: atomic { pager_up && told && phase == runs && missing && !reached && STALLS -> phase = stalled }
	:: atomic { pager_up && phase == stalled && (reached || !missing) -> phase = runs }
	:: atomic { pager_up && told && !missing && phase != ended ->
		phase = runs; over = true; pager_up = false; keeper = false }
	:: atomic { faults > 0 && pager_up -> faults--; pager_up = false }
	/* The keeper is killed with it. When the pod runs that is a loss (README.md). */
	:: atomic { faults > 0 && pager_up && keeper && phase == held && target_up -> faults--; pager_up = false; keeper = false }
	od
}

/* The pod's main command ends, or the pod is removed. An admin who sees that it stands
 * still, and that the source is gone for good, gives it up, and then the host. */
active proctype others() {
	do
	:: atomic { faults > 0 && phase == runs -> faults--; phase = ended }
	:: atomic { !machine && phase == stalled -> phase = ended }
	:: atomic { CLOSES && !machine && !closed && !needed -> closed = true; pending = false }
	od
}

/* At no instant does the pod run where it would read zeros. */
active proctype watch() {
	do
	:: atomic { zeros -> assert(false) }
	:: timeout -> break
	od;
	/* Nobody can do anything any more. */
	assert(closed && !pending);
	assert(!copy);
	assert(phase == ended || phase == runs && !missing && target_up);
	assert(!pager_up && !keeper && !spare)
}
