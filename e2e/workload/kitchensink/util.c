/* What every state needs: verdicts, pseudo-random data and kids. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PATIENCE_MS 10000

const char *path(const char *name)
{
	static __thread char bufs[16][4096];
	static __thread unsigned next;
	char *buf = bufs[next++ % 16];
	snprintf(buf, sizeof bufs[0], "%s/%s", work_dir, name);
	return buf;
}

verdict why(const char *format, ...)
{
	static __thread char buf[512];
	char text[sizeof buf];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args); /* args may point into buf */
	va_end(args);
	return strcpy(buf, text);
}

void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fprintf(stderr, "kitchensink: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(2);
}

/* The byte at position i of a stream: one round of a multiplicative hash, so
 * that any part of the stream can be made by itself. */
static unsigned char byte_at(uint32_t seed, size_t i)
{
	uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 31) * 0x94d049bb133111ebu;
	return x >> 56;
}

void fill(void *buf, size_t n, uint32_t seed, size_t offset)
{
	for (size_t i = 0; i < n; i++)
		((unsigned char *)buf)[i] = byte_at(seed, offset + i);
}

verdict filled(const void *buf, size_t n, uint32_t seed, size_t offset)
{
	for (size_t i = 0; i < n; i++)
		EXPECT(((const unsigned char *)buf)[i] == byte_at(seed, offset + i),
		       "byte %zu is wrong", offset + i);
	return NULL;
}

verdict wait_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	EXPECT(TRY(poll(&p, 1, PATIENCE_MS)) == 1, "nothing to read from descriptor %d for %d ms", fd, PATIENCE_MS);
	return NULL;
}

verdict read_filled(int fd, size_t n, uint32_t seed)
{
	char buf[65536];
	for (size_t have = 0; have < n;) {
		PASS(wait_readable(fd));
		ssize_t got = TRY(read(fd, buf, n - have < sizeof buf ? n - have : sizeof buf));
		EXPECT(got > 0, "end of file after %zu bytes of %zu", have, n);
		PASS(filled(buf, got, seed, have));
		have += got;
	}
	return NULL;
}

void write_filled(int fd, size_t n, uint32_t seed)
{
	char buf[4096];
	for (size_t done = 0; done < n;) {
		size_t part = n - done < sizeof buf ? n - done : sizeof buf;
		fill(buf, part, seed, done);
		if (MUST(write(fd, buf, part)) != (ssize_t)part)
			die("short write");
		done += part;
	}
}

int make_file(const char *name, size_t n, uint32_t seed)
{
	int fd = MUST(open(path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	write_filled(fd, n, seed);
	MUST(lseek(fd, 0, SEEK_SET));
	return fd;
}

double now(void)
{
	struct timespec t;
	MUST(clock_gettime(CLOCK_MONOTONIC, &t));
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* kid_loop answers the parent's request with a verdict, empty if all is well,
 * and ends when the parent does. */
static void kid_loop(int channel, verdict (*check)(void))
{
	char request;
	for (;;) {
		ssize_t n = read(channel, &request, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(0);
		verdict v = check();
		if (!v)
			v = "";
		MUST(write(channel, v, strlen(v) + 1));
	}
}

void kid_start(struct kid *kid, void (*setup)(void), verdict (*check)(void))
{
	int ends[2];
	char ready;

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
	fflush(NULL);
	kid->pid = MUST(fork());
	if (kid->pid == 0) {
		/* Not 0, 1, 2: they may be what the states' verdicts go to. */
		int channel = MUST(fcntl(ends[1], F_DUPFD_CLOEXEC, 1000));
		MUST(syscall(SYS_close_range, 3, 999, 0));
		MUST(syscall(SYS_close_range, 1001, ~0U, 0));
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		setup();
		MUST(write(channel, "", 1));
		kid_loop(channel, check);
	}
	close(ends[1]);
	kid->channel = ends[0];
	if (MUST(read(ends[0], &ready, 1)) != 1)
		die("a child ended in its setup");
}

verdict kid_ask(struct kid *kid)
{
	EXPECT(TRY(send(kid->channel, "c", 1, MSG_NOSIGNAL)) == 1, "the child does not listen");
	return NULL;
}

verdict kid_answer(struct kid *kid)
{
	static char buf[512];
	PASS(wait_readable(kid->channel));
	ssize_t n = TRY(read(kid->channel, buf, sizeof buf));
	EXPECT(n > 0, "the child died");
	return *buf ? buf : NULL;
}

verdict kid_check(struct kid *kid)
{
	PASS(kid_ask(kid));
	return kid_answer(kid);
}

pid_t spawn(int (*body)(void))
{
	fflush(NULL);
	pid_t pid = MUST(fork());
	if (pid == 0) {
		MUST(prctl(PR_SET_PDEATHSIG, SIGKILL));
		_exit(body());
	}
	return pid;
}
