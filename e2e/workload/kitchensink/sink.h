/*
 * The kitchen sink: a program that puts itself into every state that a process
 * can be in and that a checkpoint should carry, and later says which of them it
 * still finds. See main.c for how to run it.
 *
 * A state is set up once, before "ready", and checked once, on the trigger.
 * Where it would disturb others (signals, credentials, a working directory) it
 * lives in a process of its own, a kid, which also does the checking: every
 * state is asserted from inside.
 */
#ifndef SINK_H
#define SINK_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* A check returns NULL if all is well, else what is wrong. */
typedef const char *verdict;

struct state {
	const char *name;
	void (*setup)(void);
	verdict (*check)(void);
	/* A capability it can't be set up without, plus 1; 0 for none. */
	int needs;
};

#define NEEDS(capability) ((capability) + 1)

/* The tables, one per file; each ends with a NULL name. */
extern const struct state process_states[], thread_states[], signal_states[],
	timer_states[], memory_states[], file_states[], lock_states[],
	pipe_states[], unix_states[], tty_states[], ipc_states[], event_states[],
	credential_states[], tcp_states[], udp_states[];
/* The TCP states again, with a peer from outside: only with -p. */
extern const struct state peer_states[];
/* What CRIU 4.2.1 refuses to dump, and what it loses without a word: run only
 * when asked for by name. */
extern const struct state unmovable_states[], lost_states[];

/* The directory that everything with a name is made in. */
extern const char *work_dir;

/* path returns work_dir/name; at most 16 results are valid at a time. */
const char *path(const char *name);

/* why formats a verdict. It stays valid until the thread's next one. */
verdict why(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* die ends the program because a state can't be set up. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#define EXPECT(condition, ...) do { if (!(condition)) return why(__VA_ARGS__); } while (0)

/* MUST evaluates a call that returns -1 on error and dies of one. */
#define MUST(call) ({ \
	__typeof__(call) must_result = (call); \
	if (must_result == (__typeof__(call))-1) \
		die("%s: %s", #call, strerror(errno)); \
	must_result; })

/* TRY is MUST for checks: an error is the verdict. */
#define TRY(call) ({ \
	__typeof__(call) try_result = (call); \
	if (try_result == (__typeof__(call))-1) \
		return why("%s: %s", #call, strerror(errno)); \
	try_result; })

/* PASS hands on the verdict of a part of a check. */
#define PASS(part) do { verdict pass_verdict = (part); if (pass_verdict) return pass_verdict; } while (0)

/* fill writes n bytes of the pseudo-random stream seed, from offset on. */
void fill(void *buf, size_t n, uint32_t seed, size_t offset);

/* filled checks them. */
verdict filled(const void *buf, size_t n, uint32_t seed, size_t offset);

/* read_filled reads exactly n bytes from fd, waiting at most 10 s for each
 * piece, and checks them. */
verdict read_filled(int fd, size_t n, uint32_t seed);

/* write_filled writes n bytes, all of them or dies. */
void write_filled(int fd, size_t n, uint32_t seed);

/* wait_readable waits at most 10 s. */
verdict wait_readable(int fd);

/* make_file makes a file with n bytes of stream seed, open for both. */
int make_file(const char *name, size_t n, uint32_t seed);

/* now is CLOCK_MONOTONIC in seconds. */
double now(void);

/* A kid is a child that holds states of its own. Its setup has run when
 * kid_start returns; it has no descriptors of its parent's but 0, 1 and 2. */
struct kid { pid_t pid; int channel; };
void kid_start(struct kid *kid, void (*setup)(void), verdict (*check)(void));
verdict kid_check(struct kid *kid);
/* kid_check in two steps, for a kid that checks together with its parent. */
verdict kid_ask(struct kid *kid);
verdict kid_answer(struct kid *kid);
/* spawn forks a child that runs body and exits with its result; it has the
 * descriptors of its parent. */
pid_t spawn(int (*body)(void));

/* KID_STATE defines setup and check functions of a state that lives in a kid:
 * name_setup and name_check run in it. */
#define KID_STATE(name) \
	static struct kid name##_kid; \
	static void name##_start(void) { kid_start(&name##_kid, name##_setup, name##_check); } \
	static verdict name##_ask(void) { return kid_check(&name##_kid); }

/* peer_main is the other end of the TCP states; see tcp.c. */
int peer_main(const char *host, const char *port);
/* tcp_expect_peer makes the peer_ states wait for a peer from outside. */
void tcp_expect_peer(int port);
bool tcp_peer_expected(void);

/* trigger_wait returns when the check is asked for. */
void trigger_wait(void);

/* report prints the verdict on a state and counts it; summary prints the last
 * line and returns the exit status. */
void report(const char *name, verdict v);
int summary(void);

#endif
