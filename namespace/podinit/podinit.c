/*
 * podinit is the first process of every pod. It starts the main command as the
 * user asked for, reaps whatever is orphaned, passes signals on, keeps the
 * output, and leaves the command's exit status behind when it ends, whereupon
 * the kernel kills the rest of the pod. On request it also starts sessions:
 * further commands beside the main one ("podctl exec").
 *
 *	podinit run [OPTION...] -- COMMAND [ARGUMENT...]
 *
 * Everything it holds open is inside the pod: CRIU can carry it to another host
 * at any moment, and podd, which only ever connects to its sockets, can be
 * restarted or replaced by another host's. It has one thread and no libraries.
 *
 * Files, in DIR (/.podd), which only root may enter:
 *	stdout.BASE, stderr.BASE  what the command wrote, in segments; BASE is the
 *	                          position of the segment's first byte. A terminal's
 *	                          output is all stdout.
 *	exit                      "CODE\n", 0 to 255, 128+n for signal n
 *	main.sock, session-ID.sock
 *
 * Packets (SOCK_SEQPACKET; a type byte, then the payload; numbers are decimal):
 *	to podinit    s  start a session: NUL-terminated options and command; this
 *	                 connection becomes the session's
 *	              i  input, at most MAX_DATA bytes
 *	              e  end of input
 *	              w  window size: "ROWS COLUMNS"
 *	              h  hang up: SIGHUP to the command's process group
 *	from podinit  a  total of input bytes accepted on this connection
 *	              o  output, r  error output (sessions only)
 *	              x  exit status (sessions only); the last packet
 *
 * A session without a client keeps its output in its pipes and waits; once the
 * command has ended it waits LINGER seconds for somebody to take the status.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_DATA = 16 << 10,     /* payload of an i, o or r packet */
	MAX_REQUEST = 192 << 10, /* an s packet; below the default net.core.wmem_max */
	MAX_WORDS = 8192,        /* options and arguments of a session */
	MAX_CLIENTS = 32,
	MAX_GROUPS = 256,
	MAX_ID = 32,
	LOG_SEGMENTS = 4,        /* kept of each stream */
	LINGER = 60,             /* seconds */
	MAX_DRAINED = 64,        /* packets read after the end of the command: 1 MiB */
	EXIT_SETUP = 125,        /* podinit itself failed, as podman's */
	EXIT_CANT_EXECUTE = 126,
	EXIT_NOT_FOUND = 127,
};

struct options {
	const char *dir;         /* of sockets, logs and exit */
	const char *id;          /* of a session; NULL for the main command */
	bool tty, stdin;
	uid_t uid;
	gid_t gid, groups[MAX_GROUPS];
	size_t ngroups;
	const char *cwd;
	struct winsize window;
	off_t segment;           /* bytes in one file of a log */
	int ready;               /* descriptor to close when clients may connect, or -1 */
	int filter;              /* descriptor to read the system call filter from, or -1 */
	char **command;
};

/* An output of the command: the reading end, and where it goes. */
struct output {
	int fd;
	char type;               /* of the packets of a session */
	const char *log;         /* name of the log of the main command */
	int file;
	off_t base, size;        /* of the segment in file */
};

struct client {
	int fd;                  /* -1: free */
	unsigned long accepted, acknowledged;
};

/* The one command this process looks after. */
static struct options opt = {
	.dir = "/.podd", .cwd = "/", .window = { .ws_row = 24, .ws_col = 80 }, .segment = 16 << 20, .ready = -1, .filter = -1,
};
static pid_t command = -1;
static int status = -1;          /* exit status, -1 while it runs */
static int input = -1;           /* writing end */
static char pending_input[4 * MAX_DATA];
static size_t pending_input_len;
static bool end_of_input;
static struct output outputs[2] = {
	{ .fd = -1, .type = 'o', .log = "stdout", .file = -1 },
	{ .fd = -1, .type = 'r', .log = "stderr", .file = -1 },
};
static struct client clients[MAX_CLIENTS];
static char packet[1 + MAX_DATA]; /* of a session, for its client */
static size_t packet_len;
static bool last_packet;         /* packet holds the exit status */
static int listener = -1, signals = -1;

static void run_session(int client, char *request, size_t len) __attribute__((noreturn));

#include "log.h"
#include "confine.h"
#include "command.h"
#include "client.h"

/* read_output returns false if there is nothing to be had now. */
static bool read_output(struct output *o)
{
	ssize_t n = read(o->fd, packet + 1, MAX_DATA);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* end of file; EIO from a terminal that nobody has open any more */
		if (o->fd != input)
			close(o->fd);
		o->fd = -1;
		return false;
	}
	if (opt.id) {
		packet[0] = o->type;
		packet_len = 1 + n;
	} else {
		write_log(o, packet + 1, n);
	}
	return true;
}

static void write_input(void)
{
	ssize_t n = write(input, pending_input, pending_input_len);

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		n = pending_input_len; /* the command does not read any more */
	if (n > 0) {
		pending_input_len -= n;
		memmove(pending_input, pending_input + n, pending_input_len);
	}
}

static time_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

/* drain takes what the command left in its pipes, but not for ever: another process may go on writing. */
static void drain(void)
{
	static int drained;

	for (struct output *o = outputs; o < outputs + 2; o++)
		while (o->fd >= 0 && packet_len == 0 && drained++ < MAX_DRAINED && read_output(o))
			;
}

/* end is called while the command has ended and no packet waits. */
static void end(void)
{
	static time_t deadline;

	if (!opt.id) {
		drain();
		finish(status);
	}
	if (clients[0].fd >= 0) {
		drain();
		if (packet_len == 0) {
			packet_len = snprintf(packet, sizeof packet, "x%d", status);
			last_packet = true;
		}
	} else if (deadline == 0) {
		deadline = now() + LINGER;
	} else if (now() >= deadline) {
		leave_session();
	}
}

static void serve(void)
{
	enum { SIGNALS, LISTENER, INPUT, OUTPUTS, CLIENTS = OUTPUTS + 2, POLLED = CLIENTS + MAX_CLIENTS };
	struct pollfd p[POLLED];

	for (;;) {
		if (status >= 0 && packet_len == 0)
			end();
		if (end_of_input && pending_input_len == 0 && input >= 0 && !opt.tty) {
			close(input);
			input = -1;
		}
		for (int i = 0; i < MAX_CLIENTS; i++)
			p[CLIENTS + i].events = clients[i].fd >= 0 && !transmit(&clients[i]) ? POLLOUT : 0;
		/* A session's output waits for its client; the main command's never waits. */
		bool ready = status < 0 && packet_len == 0 && (!opt.id || clients[0].fd >= 0);

		p[SIGNALS] = (struct pollfd){ .fd = signals, .events = POLLIN };
		p[LISTENER] = (struct pollfd){ .fd = listener, .events = POLLIN };
		p[INPUT] = (struct pollfd){ .fd = pending_input_len > 0 ? input : -1, .events = POLLOUT };
		for (int i = 0; i < 2; i++)
			p[OUTPUTS + i] = (struct pollfd){ .fd = ready ? outputs[i].fd : -1, .events = POLLIN };
		for (int i = 0; i < MAX_CLIENTS; i++) {
			p[CLIENTS + i].fd = clients[i].fd;
			/* What comes in is acknowledged, so nothing may while that is not possible. */
			bool in = p[CLIENTS + i].events == 0 && room_for_input();
			p[CLIENTS + i].events |= POLLRDHUP | (in ? POLLIN : 0);
		}
		/* After the end there is more to drain at once if a packet could be sent; else time passes. */
		bool sent = packet_len == 0 && clients[0].fd >= 0;
		if (poll(p, POLLED, status < 0 ? -1 : sent ? 0 : 1000) < 0)
			continue;
		for (int i = 0; i < MAX_CLIENTS; i++) {
			if (p[CLIENTS + i].revents & POLLIN) {
				if (room_for_input())
					receive(&clients[i]);
			} else if (p[CLIENTS + i].revents & (POLLRDHUP | POLLHUP | POLLERR)) {
				drop(&clients[i]);
			}
		}
		if (p[SIGNALS].revents)
			take_signals();
		if (p[LISTENER].revents)
			accept_client();
		if (p[INPUT].revents)
			write_input();
		for (int i = 0; i < 2; i++)
			if (p[OUTPUTS + i].revents && packet_len == 0)
				read_output(&outputs[i]);
	}
}

static void parse_groups(const char *list)
{
	for (char *end; *list && opt.ngroups < MAX_GROUPS; list = *end ? end + 1 : end) {
		opt.groups[opt.ngroups++] = strtoul(list, &end, 10);
		if (end == list)
			break;
	}
}

/* parse_options returns false if an option is unknown or the command is missing. */
static bool parse_options(char **argv)
{
	for (; *argv && strcmp(*argv, "--") != 0; argv++) {
		const char *name = *argv;
		if (strcmp(name, "--tty") == 0) {
			opt.tty = true;
			continue;
		}
		if (strcmp(name, "--stdin") == 0) {
			opt.stdin = true;
			continue;
		}
		char *value = *++argv;
		if (!value)
			return false;
		if (strcmp(name, "--dir") == 0)
			opt.dir = value;
		else if (strcmp(name, "--id") == 0)
			opt.id = value;
		else if (strcmp(name, "--uid") == 0)
			opt.uid = strtoul(value, NULL, 10);
		else if (strcmp(name, "--gid") == 0)
			opt.gid = strtoul(value, NULL, 10);
		else if (strcmp(name, "--groups") == 0)
			parse_groups(value);
		else if (strcmp(name, "--cwd") == 0)
			opt.cwd = value;
		else if (strcmp(name, "--rows") == 0)
			opt.window.ws_row = strtoul(value, NULL, 10);
		else if (strcmp(name, "--columns") == 0)
			opt.window.ws_col = strtoul(value, NULL, 10);
		else if (strcmp(name, "--env") == 0)
			putenv(value);
		else if (strcmp(name, "--ready-fd") == 0)
			opt.ready = strtol(value, NULL, 10);
		else if (strcmp(name, "--filter-fd") == 0)
			opt.filter = strtol(value, NULL, 10);
		else if (strcmp(name, "--log-segment") == 0)
			opt.segment = strtoull(value, NULL, 10);
		else
			return false;
	}
	opt.command = *argv ? argv + 1 : argv;
	return *opt.command != NULL;
}

/* run_session turns a fork of the first process into the keeper of a session. */
static void run_session(int client, char *request, size_t len)
{
	static char *words[MAX_WORDS + 1];
	const char *dir = opt.dir;
	char name[64];

	/* 3 may be taken by what is closed here; the client's connection moves there. */
	dup2(client, 3);
	close_range(4, ~0U, 0);
	fcntl(3, F_SETFD, FD_CLOEXEC);
	fcntl(3, F_SETFL, O_NONBLOCK);
	for (int i = 0; i < MAX_CLIENTS; i++)
		clients[i].fd = -1;
	clients[0] = (struct client){ .fd = 3 };
	outputs[0].fd = outputs[1].fd = outputs[0].file = outputs[1].file = input = -1;
	pending_input_len = 0;
	end_of_input = false;
	opt = (struct options){ .dir = dir, .id = "", .cwd = "/", .window = { .ws_row = 24, .ws_col = 80 } };
	command = -1;
	prctl(PR_SET_NAME, "podinit-session");
	setsid();

	/* Options and environment point into it for good; the buffer it came in gets other packets. */
	char *copy = calloc(1, len + 1);
	if (!copy)
		fail("the request for a session");
	memcpy(copy, request, len);
	size_t n = 0;
	for (char *word = copy; word < copy + len && n < MAX_WORDS; word += strlen(word) + 1)
		words[n++] = word;
	errno = EINVAL;
	if (!parse_options(words) || !*opt.id || strlen(opt.id) > MAX_ID || strchr(opt.id, '/')) {
		opt.id = "";
		fail("the request for a session");
	}
	snprintf(name, sizeof name, "session-%s", opt.id);
	block_signals();
	listen_at(name);
	start_command();
	serve();
	_exit(0);
}

int main(int argc, char **argv)
{
	for (int i = 0; i < MAX_CLIENTS; i++)
		clients[i].fd = -1;
	if (argc < 3 || strcmp(argv[1], "run") != 0 || !parse_options(argv + 2) || opt.id || opt.segment <= 0) {
		dprintf(2, "usage: podinit run [--tty] [--stdin] [--uid N] [--gid N] [--groups N,...] [--cwd DIR]\n"
			   "       [--rows N] [--columns N] [--env NAME=VALUE]... [--dir DIR] [--log-segment BYTES]\n"
			   "       [--ready-fd N] [--filter-fd N] -- COMMAND [ARGUMENT...]\n");
		return EXIT_SETUP;
	}
	umask(022);
	open_segment(&outputs[0], 0);
	open_segment(&outputs[1], 0);
	if (opt.filter > 2)
		confine(opt.filter);
	/* What the runtime left at 0, 1 and 2 is the host's: no file of the host may stay open. */
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		fail("opening /dev/null");
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	if (null > 2)
		close(null);
	if (chdir("/") < 0)
		fail("changing to /");
	block_signals();
	listen_at("main");
	if (opt.ready > 2) {
		fcntl(opt.ready, F_SETFD, FD_CLOEXEC);
		start_command();
		close(opt.ready);
	} else {
		start_command();
	}
	serve();
}
