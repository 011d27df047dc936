/*
 * The move of a pod from host a to host b, as podd, podproxy and the directory
 * carry it out. README.md says what is modelled, what is not, and how to run it.
 *
 * One step of a process (a statement, or what is inside an atomic) is one thing
 * that others can see: a transaction of the directory, a message, a change of
 * the kernel, of CRIU's state or of a file. A daemon can be killed between any
 * two of them.
 *
 * Every loop uses up something bounded, so every run ends; in its last state,
 * where nobody can do anything any more, init looks at what has become of the
 * pod. So "eventually" needs no assumption but that nobody stops for ever.
 */

/* ---- decisions ----
 *
 * Each of these is one decision of the code that the model showed to matter. 1 is
 * what the code does; with 0 (-DNAME=0) the model finds the counterexample that
 * README.md describes: that is how it is known to be sharp. Whoever changes the
 * code there changes the model.
 */

/* keepReconciled in podd/reconcile.go: the host is brought to the directory's truth not
 * only when podd starts, but until nothing is left to be done: a pod is taken over or
 * restored, what is nobody's removed. */
#ifndef RECONCILES
#define RECONCILES 1
#endif

/* recoverLive in podd/recover.go: a pod that was committed to this host and did not
 * get to run is restored from its images. */
#ifndef RESTORES
#define RESTORES 1
#endif

/* awaitEmpty in podd/recover_images.go: what CRIU has killed is waited for. */
#ifndef AWAIT_DEATH
#define AWAIT_DEATH 1
#endif

/* awaitStrays in podd/reconcile_end.go: the end of a CRIU that an earlier podd has left
 * in the middle of a dump is waited for. */
#ifndef AWAIT_ROLLBACK
#define AWAIT_ROLLBACK 1
#endif

/* recoverLive in podd/recover.go: a pod that has left an exit status is not restored,
 * for it ran. */
#ifndef EXIT_TELLS
#define EXIT_TELLS 1
#endif

/* takeOver in podd/target_end.go: the images are put away after the pod has begun to
 * run, not in the Release hook: CRIU can still be killed then, and podd too. */
#ifndef ASIDE_LAST
#define ASIDE_LAST 1
#endif

/* letRun in podd/target.go: the network is unblocked after the pod has begun to run, not
 * before: while CRIU can still be killed nobody gets an answer from the copy. */
#ifndef UNBLOCK_LAST
#define UNBLOCK_LAST 1
#endif

/* resume in podd/target_end.go: when CRIU dies after the commit, the images are kept,
 * for the pod to be restored once more. */
#ifndef RESTORE_AGAIN
#define RESTORE_AGAIN 1
#endif

/* Restore.Run in checkpoint/restore.go: the commit is asked for only when the record
 * by which a later podd finds the pod is written. */
#ifndef ADOPT_FIRST
#define ADOPT_FIRST 1
#endif

/* claims in podd/claims.go: the loop leaves alone what an operation works on, and a
 * target that notices late that its move was aborted is waited for by the next one. */
#ifndef CLAIMS
#define CLAIMS 1
#endif

/* abortUnknown in podd/settle.go: a move that BeginMove may have opened is aborted. */
#ifndef BEGIN_SETTLES
#define BEGIN_SETTLES 1
#endif

/* closeLater in podd/source_end.go: a FinishMove that failed is repeated. */
#ifndef FINISH_INSISTS
#define FINISH_INSISTS 1
#endif

/* ---- bounds ---- */

#ifndef MOVES
#define MOVES 1		/* how often the user asks for the move, at most: 1 or 2 */
#endif
#ifndef FAULTS
#define FAULTS 2	/* daemons killed, connections broken, calls that failed or got no answer, steps that failed: together, at most */
#endif
#ifndef ENDS
#define ENDS 1		/* whether the pod's main command may end */
#endif

#ifndef PROXY
#define PROXY 1		/* whether podproxy takes part; it follows, and nobody waits for it */
#endif

/* ---- names ---- */

/* Those of package pod, as model_test.go checks. The phases have a prefix
 * because move states are names, too. */
mtype:stage = { preflight, reserve, presync, hold, freeze, dump, transfer, restore, commit, release };
mtype:state = { running, committed, done, aborted };
mtype:phase = { phase_running, phase_moving, phase_stopped, phase_failed };

/* The messages of api/podd/v1/transfer.proto. Images stands for what follows
 * the dump: Memory, Images, and the final Files. */
mtype:message = { Reserve, Reserved, Files, FilesApplied, Images, Restore, Restored, Committed, Running, Error };

/* What a call to the directory returns. */
mtype:answer = { ok, refused, unavailable };

/* A copy of the pod: its processes on one host. */
mtype:copy = {
	absent,
	held,		/* restored, and stopped by CRIU at post-restore */
	resuming,	/* CRIU is past its hold: the copy will run even if podd dies */
	live,		/* runs, unless it is frozen or CRIU has stopped it */
	dying,		/* killed, and the kernel is not done with it */
	killed,
	ended		/* its main command has ended: nothing more to lose */
};

/* The CRIU that works on a copy. */
mtype:criu = {
	no_criu,
	started,
	seized,		/* in a dump: has stopped the tasks and thawed the cgroup */
	post_dump, post_restore, pre_resume,
	orphan		/* its podd is dead: it undoes its work and ends */
};

/* The images of a move on b. */
mtype:images = { no_images, unused, aside };

byte faults;			/* how many are still to come */
bool mayEnd;
byte asks;			/* moves the user will still ask for */
byte begun;			/* moves asked for so far */

/* ---- the directory: a transaction is a step ---- */

mtype:state moveState[MOVES];	/* 0 before it begins */
bool moveHeld;			/* of the running move */
byte where;			/* the pod's binding: 0 on a, i+1 on b by move i; so it is label and epoch, too */
mtype:phase podPhase = phase_running;
byte podMove;			/* the pod's move: i+1, 0 for none */

/* Any call can fail: before anything was done, or after, and then the caller
 * knows neither. did says whether it was done. */
inline call(r, did) {
	if
	:: r = ok; did = true
	:: faults > 0 -> faults--; r = unavailable; did = true
	:: faults > 0 -> faults--; r = unavailable; did = false
	fi
}

inline read(r) {
	atomic {
		if
		:: r = ok
		:: faults > 0 -> faults--; r = unavailable
		fi
	}
}

/* directory.BeginMove */
inline beginMove(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did -> moveState[i] = running; podMove = i + 1; podPhase = phase_moving; moveHeld = false
		:: else
		fi;
		did = false
	}
}

/* directory.SetHeld */
inline setHeld(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did && moveState[i] == running -> moveHeld = true
		:: did && moveState[i] != running && r == ok -> r = refused
		:: else
		fi;
		did = false
	}
}

/* directory.CommitMove: refused if the move was aborted. */
inline commitMove(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did && moveState[i] == running ->
			moveState[i] = committed; moveHeld = false;
			where = i + 1; podPhase = phase_running; podMove = 0
		:: did && moveState[i] == aborted && r == ok -> r = refused
		:: else
		fi;
		did = false
	}
}

/* directory.AbortMove, by the source: it gives the pod back. Refused if the move
 * was committed. */
inline abortMove(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did && (moveState[i] == running || (moveState[i] == aborted && podMove == i + 1)) ->
			moveState[i] = aborted; moveHeld = false;
			podPhase = (podPhase == phase_moving -> phase_running : podPhase); podMove = 0
		:: did && (moveState[i] == committed || moveState[i] == done) && r == ok ->
			r = refused	/* unreached where nobody can have committed */
		:: else
		fi;
		did = false
	}
}

/* directory.CancelMove, by the target: the pod stays the move's until the source
 * has let it go on. Refused if the move was committed. */
inline cancelMove(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did && moveState[i] == running -> moveState[i] = aborted
		:: did && (moveState[i] == committed || moveState[i] == done) && r == ok ->
			r = refused	/* unreached where nobody can have committed */
		:: else
		fi;
		did = false
	}
}

/* directory.FinishMove */
inline finishMove(i, r, did) {
	atomic {
		call(r, did);
		if
		:: did && moveState[i] == committed -> moveState[i] = done
		:: else
		fi;
		did = false
	}
}

/* directory.UpdatePod, for the end of the main command. */
inline recordStopped(r, did) {
	atomic {
		call(r, did);
		if
		:: did -> podPhase = phase_stopped
		:: else
		fi;
		did = false
	}
}

/* ---- the connections of the moves ---- */

/* One for each move. What is on its way when it is cut arrives or does not, and
 * each side notices when it next listens, however late. */
bool dialed[MOVES], cut[MOVES];
chan toTarget[MOVES] = [2] of { mtype:message };
chan toSource[MOVES] = [3] of { mtype:message };

inline sendOrFail(channel, i, message) {
	atomic {
		if
		:: !cut[i] -> channel!message
		:: cut[i]		/* into the void */
		:: cut[i] -> goto fail
		fi
	}
}

inline send(channel, i, message) {
	if
	:: !cut[i] -> channel!message
	:: else
	fi
}

/* ---- host a ---- */

bool upA = true;		/* podd runs */
bool trackedA = true;		/* it looks after the pod */
mtype:copy copyA = live;
mtype:criu criuA = no_criu;
bool frozenA, blockedA;		/* the cgroup; eth0 */
bool nsA = true;		/* the incarnation's files and network namespace are there */
bool unclosed;			/* its move was committed when podd started, and has to be closed */

#define RUNS_A	(copyA == live && !frozenA && (criuA == no_criu || criuA == started))

/* ---- host b ---- */

bool upB = true, servingB = true;
byte sessions;			/* moves that podd is the target of */
byte trackedB;			/* i+1, 0 for none */

byte claimB;			/* who works on the pod: i+1 for the session of move i, LOOP; 0 for nobody */
#define LOOP	(MOVES + 1)

/* By move, and so by incarnation: an epoch is not used again after an abort. */
mtype:copy copyB[MOVES] = absent;
mtype:criu criuB[MOVES] = no_criu;
mtype:images imagesB[MOVES] = no_images;
bool adoptedB[MOVES];		/* the container's record names the copy's process */
bool ranB[MOVES];		/* it ran, or its kernel has answered somebody */
bool incarnationB[MOVES];	/* its files and network namespace are there */
bool blockedB[MOVES];

/* ---- the proxy's kernel ---- */

#if PROXY
bool upP = true;
#define NOWHERE	(MOVES + 1)
byte route;			/* the label that the pod's route leads to, as in where, or NOWHERE */
bool queues[MOVES + 1];		/* by label: the neighbour is INCOMPLETE, the kernel queues */
#endif

/* ---- the properties ---- */

#define RUNS_B(i)	(copyB[i] == live)
#if PROXY
#define ROUTED(label)	(route == label)
#define REACHED(label)	(route == label && !queues[label])
#else				/* whatever the route */
#define ROUTED(label)	true
#define REACHED(label)	true
#endif
#define SPEAKS_A	(RUNS_A && !blockedA && ROUTED(0))
#define SPEAKS_B(i)	(RUNS_B(i) && !blockedB[i] && ROUTED(i + 1))

/* The pod runs, or there is a place from which it can be made to run again, or
 * it has ended by itself. Before the commit that is its copy on a; after it the
 * one on b, or its images and files there. */
#define SAFE_A		(copyA == live || copyA == ended)
#define SAFE_B(i)	(incarnationB[i] && \
	(copyB[i] == live || copyB[i] == resuming || copyB[i] == ended || imagesB[i] == unused || \
	(imagesB[i] == aside && upB && trackedB != i + 1 /* podd is about to put them back */)))

#if MOVES == 1
#define RUNNING		(RUNS_A + RUNS_B(0))
#define SPEAKING	(SPEAKS_A + SPEAKS_B(0))
#define SAFE		((where == 0 && SAFE_A) || (where == 1 && SAFE_B(0)))
#else
#define RUNNING		(RUNS_A + RUNS_B(0) + RUNS_B(1))
#define SPEAKING	(SPEAKS_A + SPEAKS_B(0) + SPEAKS_B(1))
#define SAFE		((where == 0 && SAFE_A) || (where == 1 && SAFE_B(0)) || (where == 2 && SAFE_B(1)))
#endif

#define atMostOneRuns	(RUNNING <= 1)
#define atMostOneSpeaks	(SPEAKING <= 1)
#define neverLost	(podPhase == phase_stopped || SAFE)

/* It can do something only when one of them does not hold. */
active proctype safety() {
	if
	:: !(atMostOneRuns) -> assert(atMostOneRuns)		/* unreached */
	:: !(atMostOneSpeaks) -> assert(atMostOneSpeaks)	/* unreached */
	:: !(neverLost) -> assert(neverLost)			/* unreached */
	fi
}

/* podd gives the pod up. */
inline giveUp() { assert(false) }

/* ---- podd on a ---- */

mtype:stage stage;		/* of the move under way; nothing depends on it */

/* The directory has the pod here, and podd does not look after it. */
#define HERE_A	(where == 0 && podPhase == phase_running && !trackedA)

active proctype source() {
	byte i;
	mtype:answer r;
	bool did, asked;

	goto serve;
boot:
	{
		/* recover in podd/recover.go. That the directory can't be read is
		 * modelled where something was done before: else it is as if podd
		 * had started later. */
		if				/* abortMoves */
		:: atomic { podMove != 0 -> i = podMove - 1 };
			atomic {
				abortMove(i, r, did);
				if
				:: r == unavailable -> goto boot	/* podd ends with the error, and is started again */
				:: else
				fi
			}
		:: podMove == 0
		fi;
		atomic {			/* noteUnclosed */
			i = 0;
			unclosed = (where != 0 && moveState[where - 1 + (where == 0)] == committed)
		};
look:		/* reconcile in podd/reconcile.go */
		r = ok;
		if
		:: HERE_A ->			/* recoverPod */
#if AWAIT_ROLLBACK
			criuA == no_criu;	/* awaitStrays */
#endif
			read(r);		/* d.net: the proxy's address */
			if
			:: r == ok && copyA == live ->	/* unfreeze */
				if
				:: frozenA -> blockedA = false; frozenA = false
				:: !frozenA -> blockedA = false
				fi;
				trackedA = true
			:: r == ok && copyA == ended -> recordStopped(r, did)
			:: r == ok && copyA != live && copyA != ended -> giveUp()
			:: r != ok
			fi
		:: where != 0 && nsA ->		/* removeRemains */
			read(r);		/* d.net */
			if
			:: r == ok ->
				blockedA = true;	/* the NIC goes first */
				atomic { copyA = (copyA == live -> killed : copyA); frozenA = false };
				atomic { nsA = false; blockedA = false }
			:: r != ok
			fi
		:: else
		fi;
		if				/* closeMoves */
		:: unclosed && !nsA -> atomic { finishMove(where - 1, r, did); unclosed = (r != ok) }
		:: else
		fi;

serve:
		atomic { i = 0; asked = false; r = 0; stage = 0 };
		if
		:: atomic { asks > 0 && trackedA && copyA == live && podPhase == phase_running ->
				stage = preflight; asks--; i = begun; begun++ }
		:: trackedA && copyA == ended ->		/* monitor in podd/pods.go */
			do
			:: recordStopped(r, did);
				if
				:: r == ok -> trackedA = false; break
				:: else
				fi
			od;
			goto serve
		:: RECONCILES && (HERE_A || (where != 0 && nsA) || unclosed) -> goto look
		fi;

		/* movePod in podd/source.go */
		atomic { stage = reserve; beginMove(i, r, did) };
		if
		:: r == unavailable ->
#if BEGIN_SETTLES
			do			/* abortUnknown */
			:: podMove == i + 1 -> abortMove(i, r, did)
			:: podMove != i + 1 -> break
			od;
#endif
			goto serve
		:: else
		fi;
		atomic {			/* dialTransfer */
			if
			:: upB -> dialed[i] = true; toTarget[i]!Reserve
			:: !upB -> goto fail
			fi
		};
		atomic {
			if
			:: toSource[i]?Reserved
			:: toSource[i]?Error -> goto fail
			:: cut[i] -> goto fail
			fi
		};

		atomic { stage = presync; sendOrFail(toTarget[i], i, Files) };
		atomic {
			if
			:: toSource[i]?FilesApplied
			:: toSource[i]?Error -> goto fail
			:: cut[i] -> goto fail
			fi
		};
		atomic {			/* prepareDump */
			if
			:: copyA == ended -> goto fail
			:: else -> criuA = started
			fi
		};

		/* The proxy is asked by way of the journal; the call that waits until
		 * it has done so (holdAtProxy) changes nothing if it fails. */
		atomic {
			stage = hold; setHeld(i, r, did);
			if
			:: r != ok -> goto fail
			:: else
			fi
		};

		/* freezeAndDump: the order of events is in checkpoint/doc.go */
		atomic { stage = freeze; frozenA = true };
		atomic {
			if
			:: copyA == ended -> goto fail		/* CRIU finds no process */
			:: else -> criuA = seized; frozenA = false
			fi
		};
		atomic { stage = dump; blockedA = true };
		if
		:: atomic { frozenA = true; criuA = post_dump }
		:: atomic { faults > 0 -> faults--; goto fail }
		fi;

		atomic { stage = transfer; sendOrFail(toTarget[i], i, Images) };
		atomic {
			if
			:: toSource[i]?FilesApplied
			:: toSource[i]?Error -> goto fail
			:: cut[i] -> goto fail
			:: goto fail			/* the deadline: frozenLimit */
			fi
		};

		atomic { stage = restore; asked = true; sendOrFail(toTarget[i], i, Restore) };
		atomic {
			if
			:: toSource[i]?Restored
			:: toSource[i]?Error -> goto fail
			:: cut[i] -> goto fail
			:: goto fail
			fi;
			stage = commit
		};
		atomic {
			if
			:: toSource[i]?Committed
			:: toSource[i]?Error -> goto fail
			:: cut[i] -> goto fail
			:: goto fail
			fi;
			stage = release			/* whether Running comes makes no difference */
		};

finish:		/* The target has committed. */
		atomic { copyA = (copyA == live -> killed : copyA); criuA = no_criu; frozenA = false };	/* Dump.Commit */
		atomic { cut[i] = true; trackedA = false; nsA = false; blockedA = false };	/* cleanup, removeIncarnation */
		do
		:: atomic {
			finishMove(i, r, did);
			if
			:: r != ok && FINISH_INSISTS
			:: else -> goto serve
			fi
		}
		od;

fail:		/* sourceMove.fail */
		if
		:: !asked
		:: asked ->
			do			/* settle */
			:: atomic {
				abortMove(i, r, did);
				if
				:: r == refused -> goto finish
				:: r == ok -> break
				:: r == unavailable
				fi
			}
			od
		fi;
		if				/* Dump.Abort: rollBack in checkpoint/dump_end.go */
		:: atomic { criuA == seized || criuA == post_dump -> criuA = no_criu; frozenA = true };	/* CRIU leaves the cgroup as it found it */
			blockedA = false
		:: atomic { criuA == started || criuA == no_criu -> criuA = no_criu }
		fi;
		frozenA = false;
		if
		:: !asked ->
			do			/* settle */
			:: atomic {
				abortMove(i, r, did);
				assert(r != refused);	/* nobody commits who was not asked to restore */
				if
				:: r == ok -> break
				:: r == unavailable
				fi
			}
			od
		:: asked
		fi;
		atomic { cut[i] = true; goto serve }
	} unless { !upA };
	atomic { upA = true; i = 0; asked = false; r = 0; stage = 0; did = false };
	goto boot
}

/* ---- podd on b ---- */

/* Restore.Commit on the copy that is held. broke says that CRIU was killed on the
 * way, and the copy with it. */
inline letRun(i, broke) {
	atomic {
		if
		:: criuB[i] == post_restore -> criuB[i] = pre_resume; copyB[i] = resuming; broke = false
		:: faults > 0 && criuB[i] == post_restore -> faults--; copyB[i] = killed; criuB[i] = no_criu; broke = true
#if !CLAIMS
		:: criuB[i] != post_restore -> broke = true
#endif
		fi
	};
	if
	:: !broke ->
		/* the Release hook */
#if !ASIDE_LAST
		imagesB[i] = aside;
#endif
#if !UNBLOCK_LAST
		atomic { blockedB[i] = false; ranB[i] = true };
#endif
		atomic {
			if
			:: copyB[i] == resuming -> copyB[i] = live; ranB[i] = true; criuB[i] = no_criu
			:: faults > 0 && copyB[i] == resuming -> faults--; copyB[i] = killed; criuB[i] = no_criu; broke = true
#if !CLAIMS
			:: copyB[i] != resuming -> broke = true
#endif
			fi
		};
		if
		:: !broke -> blockedB[i] = false
		:: broke
		fi
	:: broke
	fi
}

/* removeIncarnation in podd/pods.go */
inline removeIncarnation(j) {
	incarnationB[j] = false; blockedB[j] = false;
	if
	:: copyB[j] != absent -> copyB[j] = killed
	:: else
	fi;
	criuB[j] = no_criu; adoptedB[j] = false; ranB[j] = false
}

/* serveTransfer in podd/target.go: the target's side of move i. */
proctype session(byte i) {
	mtype:answer r;
	bool did, asked, mine, broke;

	atomic { dialed[i] && servingB -> sessions++ };
	{
		atomic {
			if
			:: toTarget[i]?Reserve
			:: cut[i] -> goto fail
			fi
		};
		/* reserve */
		atomic {
			read(r);
			if
			:: r != ok || moveState[i] != running -> goto fail
			:: else
			fi
		};
#if CLAIMS
		atomic { claimB == 0 -> claimB = i + 1 };
#endif
		atomic {			/* Attach and Prepare */
			mine = true;
			incarnationB[i] = true; blockedB[i] = true; criuB[i] = started
		};
		sendOrFail(toSource[i], i, Reserved);
		do
		:: atomic { toTarget[i]?Files -> send(toSource[i], i, FilesApplied) }
		:: atomic { toTarget[i]?Images -> imagesB[i] = unused; send(toSource[i], i, FilesApplied) }
		:: toTarget[i]?Restore -> break
		:: cut[i] -> goto fail
		od;

		/* finish: Restore.Run, which has the record written meanwhile */
		if
#if ADOPT_FIRST
		:: atomic { criuB[i] == started -> adoptedB[i] = true; copyB[i] = held; criuB[i] = post_restore }
#else
		:: atomic { criuB[i] == started -> copyB[i] = held; criuB[i] = post_restore }
#endif
		:: criuB[i] != started -> goto fail	/* unreached: nobody else touches it */
		:: atomic { faults > 0 -> faults--; goto fail }
		fi;
		atomic {			/* ReadAhead */
			read(r);
			if
			:: r != ok -> goto fail
			:: else
			fi
		};
		sendOrFail(toSource[i], i, Restored);
#if ADOPT_FIRST
		atomic { asked = true; commitMove(i, r, did) };
#else
		if
		:: adoptedB[i] = true; atomic { asked = true; commitMove(i, r, did) }
		:: atomic { asked = true; commitMove(i, r, did) };
			if
			:: adoptedB[i] = true
			:: atomic { faults > 0 -> faults-- }	/* and later again */
			fi
		fi;
#endif
		if
		:: r != ok -> goto fail
		:: else
		fi;

forward:	/* resume, then takeOver */
		letRun(i, broke);
#if !RESTORE_AGAIN
		broke = false;
#endif
		if
		:: !broke ->
			atomic { send(toSource[i], i, Committed); send(toSource[i], i, Running) };
			trackedB = i + 1;
			imagesB[i] = no_images
		:: broke -> atomic { blockedB[i] = true; send(toSource[i], i, Committed) }	/* the loop restores it */
		fi;
		goto over;

fail:		/* targetMove.fail */
		if
		:: !asked
		:: asked ->
			do			/* settle */
			:: atomic {
				cancelMove(i, r, did);
				if
				:: r == refused -> goto forward
				:: r == ok -> break
				:: r == unavailable
				fi
			}
			od
		fi;
		atomic {			/* Restore.Abort and the rest */
			if
			:: criuB[i] == post_restore -> copyB[i] = killed
			:: else
			fi;
			criuB[i] = no_criu; imagesB[i] = no_images;
			if
			:: mine -> removeIncarnation(i)
			:: else
			fi
		};
		if
		:: atomic { !cut[i] -> send(toSource[i], i, Error) }
		:: cut[i] && mine -> cancelMove(i, r, did)	/* once */
		:: cut[i] && !mine
		fi;
over:
		skip
	} unless { !upB };
	atomic {
		cut[i] = true; sessions--; claimB = (claimB == i + 1 -> 0 : claimB);
		asked = false; mine = false; broke = false; r = 0; did = false;
		do
		:: toTarget[i]?_
		:: empty(toTarget[i]) -> break
		od
	}
}

/* Container.PID: there is a process of this record. */
#define FOUND_B(i) (adoptedB[i] && (copyB[i] == live || copyB[i] == resuming || copyB[i] == dying || copyB[i] == held))

#define RESTORABLE_B(i) (!FOUND_B(i) && imagesB[i] == unused && !(EXIT_TELLS && copyB[i] == ended))

/* The directory has the pod here, and podd does not look after it. */
#define HERE_B	(where != 0 && podPhase == phase_running && trackedB != where)

/* What was made for move i is nobody's; its images are not needed. */
#define LEFT_B(i) (incarnationB[i] && where != i + 1)
#define SPARE_B(i) (imagesB[i] != no_images && !(HERE_B && where == i + 1 && imagesB[i] == unused))

#if MOVES == 1
#define UNTIDY_B (LEFT_B(0) || SPARE_B(0))
#else
#define UNTIDY_B (LEFT_B(0) || SPARE_B(0) || LEFT_B(1) || SPARE_B(1))
#endif

/* The start of podd, the reconcile loop, and the pod's monitor. */
active proctype target() {
	byte i;
	mtype:answer r;
	bool did, broke;

	goto serve;
boot:
	{
		/* recover in podd/recover.go */
		if				/* abortMoves */
		:: atomic { podMove != 0 && moveState[podMove - 1 + (podMove == 0)] == running -> i = podMove - 1 };
			atomic {
				cancelMove(i, r, did);
				if
				:: r == unavailable -> goto boot
				:: else
				fi
			}
		:: else
		fi;
#if CLAIMS
		atomic { claimB == 0 -> claimB = LOOP };
#endif
look:		/* reconcile in podd/reconcile.go; the claim is held */
		atomic { i = 0; r = ok };
		atomic {			/* removeRemains */
			if
			:: UNTIDY_B -> read(r)	/* d.net */
			:: else
			fi;
			do
			:: i < MOVES && r == ok && LEFT_B(i) -> removeIncarnation(i); i++
			:: i < MOVES && !(r == ok && LEFT_B(i)) -> i++
			:: i == MOVES -> i = 0; break
			od
		};
		if
		:: r == ok && HERE_B ->		/* recoverLive */
			i = where - 1;
			criuB[i] == no_criu;	/* awaitStrays */
			!AWAIT_DEATH || imagesB[i] != unused || copyB[i] != dying;	/* awaitEmpty */
			if
			:: FOUND_B(i) ->
				read(r);	/* unfreeze: d.net */
				if
				:: r == ok -> blockedB[i] = false; trackedB = i + 1
				:: else
				fi
#if RESTORES
			:: RESTORABLE_B(i) ->	/* restoreCommitted */
				read(r);	/* d.net */
				if
				:: r == ok -> blockedB[i] = true
				:: else -> goto taken
				fi;
				assert(!ranB[i]);	/* nothing runs a second time from its past */
				assert(copyB[i] == absent || copyB[i] == killed);
				if
				:: atomic { copyB[i] = held; criuB[i] = post_restore }
				:: atomic { faults > 0 -> faults--; r = unavailable; goto taken }
				fi;
				adoptedB[i] = true;
				letRun(i, broke);
				if
				:: !broke -> trackedB = i + 1
				:: broke -> r = unavailable
				fi
#endif
			:: else ->		/* recordEnd */
				if
				:: copyB[i] == ended -> recordStopped(r, did)
				:: else -> giveUp()
				fi
			fi
		:: else
		fi;
taken:
		atomic {			/* removeImages */
			i = 0;
			do
			:: i < MOVES && r == ok && SPARE_B(i) -> imagesB[i] = no_images; i++
			:: i < MOVES && !(r == ok && SPARE_B(i)) -> i++
			:: i == MOVES -> i = 0; break
			od
		};
		atomic { servingB = true; claimB = (claimB == LOOP -> 0 : claimB) };

serve:
		r = 0;
		if				/* monitor in podd/pods.go */
		:: trackedB != 0 && copyB[trackedB - 1] == ended ->
			do
			:: recordStopped(r, did);
				if
				:: r == ok -> trackedB = 0; break
				:: else
				fi
			od
		:: trackedB != 0 && copyB[trackedB - 1] == killed -> giveUp()
#if RECONCILES
		:: atomic { (HERE_B || UNTIDY_B) && (!CLAIMS || claimB == 0) -> claimB = (CLAIMS -> LOOP : 0); goto look }
#endif
#if !ADOPT_FIRST
		:: trackedB != 0 && !adoptedB[trackedB - 1] -> adoptedB[trackedB - 1] = true
#endif
		fi;
		goto serve
	} unless { !upB };
	atomic { sessions == 0 -> upB = true; claimB = 0; i = 0; broke = false; r = 0; did = false };
	goto boot
}

/* ---- podproxy: proxy/reconcile.go and proxy/datapath ---- */

#if PROXY

active proctype proxy() {
	bool seen;			/* there is a view; the rest is what it says */
	byte vWhere, vMove;
	bool vHeld, vLive;
	bool expired;			/* the hold's time is up */
	byte old;

#define NEWS	(!seen || vWhere != where || vMove != podMove || \
		vHeld != (podMove != 0 && moveHeld) || vLive != (podPhase != phase_stopped))
#define WANT	(vMove != 0 && vHeld && !expired)

boot:
	{
		do
		:: atomic { NEWS ->
			if
			:: vMove != podMove -> expired = false
			:: else
			fi;
			seen = true; vWhere = where; vMove = podMove;
			vHeld = (podMove != 0 && moveHeld); vLive = (podPhase != phase_stopped)
		}
		:: atomic { seen && WANT && queues[vWhere] -> expired = true }
		/* Set */
		:: seen && !vLive && route != NOWHERE -> route = NOWHERE
		:: seen && vLive && route != vWhere ->	/* switchTo */
			old = route;
			queues[vWhere] = (old == NOWHERE -> false : queues[old]);
			route = vWhere;		/* the old device sends its queue to the new label */
			if
			:: old != NOWHERE -> queues[old] = false
			:: else
			fi;
			queues[vWhere] = false;
			old = 0
		:: seen && vLive && route == vWhere && queues[vWhere] != WANT -> queues[vWhere] = WANT
		:: seen && vLive && route == vWhere && vMove != 0 && queues[vMove] != WANT -> queues[vMove] = WANT
		od
	} unless { !upP };
	atomic {
		upP = true; seen = false; vWhere = 0; vMove = 0; vHeld = false; vLive = false;
		expired = false; old = 0
	};
	goto boot
}

#endif

/* ---- CRIU and the kernel, which go on when a podd is dead ---- */

inline undoRestore(j) {
	if
	:: copyB[j] == resuming -> copyB[j] = live; ranB[j] = true	/* past its hold it goes on */
	:: copyB[j] == held -> copyB[j] = dying
	:: else
	fi;
	criuB[j] = no_criu
}

active proctype criu() {
	do
	:: atomic { criuA == orphan -> criuA = no_criu; frozenA = true }	/* the cgroup was frozen when it came */
	:: atomic { criuB[0] == orphan -> undoRestore(0) }
	:: atomic { copyB[0] == dying -> copyB[0] = killed }
#if MOVES > 1
	:: atomic { criuB[1] == orphan -> undoRestore(1) }
	:: atomic { copyB[1] == dying -> copyB[1] = killed }
#endif
	od
}

/* ---- what goes wrong ---- */

#define LEFT(c)	(c == started -> no_criu : (c == no_criu -> no_criu : orphan))

inline breakConnection(i) {
	if
	:: dialed[i] -> cut[i] = true
	:: else
	fi
}

active proctype trouble() {
	do
	:: atomic { faults > 0 && upA -> faults--;
		upA = false; trackedA = false; criuA = LEFT(criuA);
		breakConnection(0);
#if MOVES > 1
		breakConnection(1);
#endif
	}
	:: atomic { faults > 0 && upB -> faults--;
		upB = false; servingB = false; trackedB = 0; criuB[0] = LEFT(criuB[0]);
		breakConnection(0);
#if MOVES > 1
		criuB[1] = LEFT(criuB[1]);
		breakConnection(1);
#endif
	}
#if PROXY
	:: atomic { faults > 0 && upP -> faults--; upP = false }
#endif
	:: atomic { faults > 0 && dialed[0] && !cut[0] -> faults--; cut[0] = true }
#if MOVES > 1
	:: atomic { faults > 0 && dialed[1] && !cut[1] -> faults--; cut[1] = true }
#endif
	:: atomic { mayEnd && RUNS_A -> mayEnd = false; copyA = ended }
	:: atomic { mayEnd && copyB[0] == live -> mayEnd = false; copyB[0] = ended }
#if MOVES > 1
	:: atomic { mayEnd && copyB[1] == live -> mayEnd = false; copyB[1] = ended }
#endif
	od
}

/* ---- what must have become of the pod in the end ---- */

#define AT_A	(RUNS_A && !frozenA && !blockedA && criuA == no_criu && trackedA && nsA)
#define NOT_AT_A (copyA != live && criuA == no_criu && !trackedA && !nsA)
#define AT_B(i)	(copyB[i] == live && !blockedB[i] && criuB[i] == no_criu && trackedB == i + 1)
#define NOT_AT_B(i) ((copyB[i] == absent || copyB[i] == killed || copyB[i] == ended) && criuB[i] == no_criu)

init {
	byte j;
	atomic {
		/* How much goes wrong is chosen first, and then all of it comes. */
		select(faults : 0 .. FAULTS);
		if
		:: mayEnd = false
		:: mayEnd = ENDS
		fi;
		if
		:: asks = 1
		:: asks = MOVES
		fi;
		do
		:: j < MOVES -> run session(j); j++
		:: j == MOVES -> j = 0; break
		od
	};
	timeout ->
	atomic {
		do
		:: j < MOVES ->
			assert(moveState[j] != running);	/* decided */
			assert(moveState[j] != committed);	/* and closed */
			assert(imagesB[j] == no_images);
			assert(where == j + 1 || (NOT_AT_B(j) && !incarnationB[j]));
			j++
		:: j == MOVES -> break
		od;
		assert(podPhase == phase_running || podPhase == phase_stopped);
		if
		:: podPhase == phase_running && where == 0 ->
			assert(AT_A);
			assert(REACHED(0));
			assert(trackedB == 0)
		:: podPhase == phase_running && where != 0 ->
			assert(AT_B(where - 1));
			assert(REACHED(where));
			assert(NOT_AT_A)
		:: podPhase == phase_stopped ->
			assert(RUNNING == 0);
			assert(ROUTED(NOWHERE))
		fi
	}
}
