/*
 * kitchensink [-d DIR] [-p PORT] run [NOT...]   every state, except those named
 * kitchensink [-d DIR] [-p PORT] only NAME...   just these, unmovable ones too
 * kitchensink [-d DIR] peer HOST PORT           the other end for -p
 * kitchensink list | list-unmovable | list-lost
 *
 * It sets the states up, prints "ready", and waits for SIGUSR1 or for the file
 * DIR/check to exist. Then it prints "ok NAME" or "FAIL NAME: why" for each and
 * "done N ok M failed", and exits with 0 if M is 0, else 1.
 *
 * With -p it listens on PORT (0: any), prints "listening PORT" and waits for a
 * peer before "ready". A peer prints "ready" when its connections are made and
 * waits for its own trigger (DIR/check-peer or SIGUSR1): both must be triggered,
 * as they check together.
 */
#define _GNU_SOURCE
#include "sink.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

const char *work_dir = "/tmp/kitchensink";
static const char *trigger_name = "check";
static volatile sig_atomic_t triggered;
static int passed, failed;

static const struct state *const tables[] = {
	process_states, credential_states, signal_states, timer_states, tty_states,
	memory_states, file_states, lock_states, pipe_states, unix_states,
	ipc_states, event_states, udp_states, tcp_states, thread_states, peer_states, NULL,
};

static const struct state *const unmovable[] = { unmovable_states, NULL };
static const struct state *const lost[] = { lost_states, NULL };

static void on_trigger(int sig) { (void)sig; triggered = 1; }

void trigger_wait(void)
{
	struct timespec step = { .tv_nsec = 20 * 1000 * 1000 };
	while (!triggered && access(path(trigger_name), F_OK) != 0)
		nanosleep(&step, NULL);
}

void report(const char *name, verdict v)
{
	if (v) {
		failed++;
		printf("FAIL %s: %s\n", name, v);
	} else {
		passed++;
		printf("ok %s\n", name);
	}
}

int summary(void)
{
	printf("done %d ok %d failed\n", passed, failed);
	return failed ? 1 : 0;
}

static bool named(const char *name, char **names)
{
	for (; *names; names++)
		if (strcmp(name, *names) == 0)
			return true;
	return false;
}

/* able reports whether a state can be set up by this process. */
static bool able(const struct state *s)
{
	return !s->needs || (prctl(PR_CAPBSET_READ, s->needs - 1) == 1 && geteuid() == 0);
}

static int list(const struct state *const *from)
{
	for (; *from; from++)
		for (const struct state *s = *from; s->name; s++)
			puts(s->name);
	return 0;
}

static bool in_tables(const char *name, const struct state *const *from)
{
	for (; *from; from++)
		for (const struct state *s = *from; s->name; s++)
			if (strcmp(s->name, name) == 0)
				return true;
	return false;
}

static const struct state *chosen[256];
static int chosen_count;

/* choose takes those of the tables whose names are, or are not, among names. */
static void choose(const struct state *const *from, char **names, bool only)
{
	for (; *from; from++)
		for (const struct state *s = *from; s->name; s++) {
			if (named(s->name, names) != only || (*from == peer_states && !tcp_peer_expected()))
				continue;
			if (able(s))
				chosen[chosen_count++] = s;
			else
				printf("# %s is left out: it takes a capability that is missing\n", s->name);
		}
}

/* run sets up the states that are named, or are not, and checks them. */
static int run(char **names, bool only)
{
	for (char **name = names; *name; name++)
		if (!in_tables(*name, tables) && !(only && (in_tables(*name, unmovable) || in_tables(*name, lost))))
			die("there is no state %s", *name);
	choose(tables, names, only);
	if (only) {
		choose(unmovable, names, only);
		choose(lost, names, only);
	}
	for (int i = 0; i < chosen_count; i++)
		chosen[i]->setup();
	puts("ready");
	trigger_wait();
	for (int i = 0; i < chosen_count; i++)
		report(chosen[i]->name, chosen[i]->check());
	return summary();
}

static int usage(void)
{
	fprintf(stderr, "usage: kitchensink [-d DIR] [-p PORT] run [NOT...] | only NAME... | peer HOST PORT | list | list-unmovable | list-lost\n");
	return 2;
}

int main(int argc, char **argv)
{
	int option;
	const char *port = NULL;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR1, on_trigger);
	while ((option = getopt(argc, argv, "+d:p:")) != -1) {
		if (option == 'd')
			work_dir = optarg;
		else if (option == 'p')
			port = optarg;
		else
			return usage();
	}
	argv += optind;
	if (!*argv)
		return usage();
	const char *command = *argv++;
	if (strcmp(command, "list") == 0)
		return list(tables);
	if (strcmp(command, "list-unmovable") == 0)
		return list(unmovable);
	if (strcmp(command, "list-lost") == 0)
		return list(lost);
	if (mkdir(work_dir, 0755) && errno != EEXIST)
		die("making %s: %s", work_dir, strerror(errno));
	if (strcmp(command, "peer") == 0 && argv[0] && argv[1]) {
		trigger_name = "check-peer";
		return peer_main(argv[0], argv[1]);
	}
	if (port)
		tcp_expect_peer(atoi(port));
	if (strcmp(command, "run") == 0)
		return run(argv, false);
	if (strcmp(command, "only") == 0 && *argv)
		return run(argv, true);
	return usage();
}
