/*
 * changing PORT PROCESSES THREADS MIB OPERATIONS: processes and threads that change
 * their memory in every way, so many operations a second each, and know what each
 * page of it must hold: by a number that says how often it was written. Each thread
 * has so many MiB in some mappings, and a little of shared memory. A line "check" to the port has all of them look
 * at every page, and is answered with "changing whole PAGES OPERATIONS", or with what
 * is wrong; other lines with "changing COUNT LINE", COUNT being of the connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MAPS = 6, SHARED = 32, WORKERS = 64 };

/* What all processes share. */
static struct shared {
	_Atomic uint64_t asked; /* checks */
	struct worker {
		_Atomic uint64_t answered, operations, pages;
	} workers[WORKERS];
	_Atomic int broken;
	char message[256];
} *shared;

static int processes, threads, operations;
static uint64_t pages_each;

static void broken(const char *format, ...)
{
	va_list arguments;

	if (!atomic_exchange(&shared->broken, 1)) {
		va_start(arguments, format);
		vsnprintf(shared->message, sizeof shared->message, format, arguments);
		va_end(arguments);
		fprintf(stderr, "%s\n", shared->message);
	}
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/* A mapping; a page's version is 0 where it must read as zeros. */
struct map {
	char *at;
	uint64_t pages, key;
	uint32_t *version;
	int shared;
};

struct state {
	int number;
	uint64_t random;
	struct map maps[MAPS];
};

static uint64_t draw(struct state *s, uint64_t below) { return mix(s->random++) % below; }

static uint64_t word(const struct map *m, uint64_t page, uint64_t i)
{
	return m->version[page] ? mix(m->key ^ page << 40 ^ (uint64_t)m->version[page] << 10 ^ i) : 0;
}

static void put(struct map *m, uint64_t page)
{
	uint64_t *p = (uint64_t *)(m->at + page * PAGE);

	m->version[page]++;
	for (uint64_t i = 0; i < WORDS; i++)
		p[i] = word(m, page, i);
}

static void check(const struct state *s, const struct map *m, uint64_t page, const char *when)
{
	const volatile uint64_t *p = (const volatile uint64_t *)(m->at + page * PAGE);

	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t got = p[i];

		if (got != word(m, page, i)) {
			broken("worker %d %s: page %llu of %p, version %u, word %d is %llx instead of %llx", s->number, when,
			       (unsigned long long)page, (void *)m->at, m->version[page], (int)i, (unsigned long long)got,
			       (unsigned long long)word(m, page, i));
			return;
		}
	}
}

static void check_all(const struct state *s, const char *when)
{
	for (int i = 0; i < MAPS; i++)
		for (uint64_t page = 0; page < s->maps[i].pages; page++)
			check(s, &s->maps[i], page, when);
}

static void *must_map(void *p)
{
	if (p == MAP_FAILED) {
		broken("a mapping failed: %s", strerror(errno));
		_exit(1);
	}
	return p;
}

/* The last two maps of a thread are shared memory: an anonymous one and a memfd. */
static void make(struct state *s, int i)
{
	struct map *m = &s->maps[i];
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;

	m->shared = i >= MAPS - 2;
	if (i == MAPS - 1) {
		fd = memfd_create("changing", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, m->pages * PAGE))
			broken("memfd: %s", strerror(errno));
		flags = MAP_SHARED;
	} else if (m->shared) {
		flags = MAP_SHARED | MAP_ANONYMOUS;
	}
	m->at = must_map(mmap(NULL, m->pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0));
	m->key = mix(s->random++);
	memset(m->version, 0, m->pages * sizeof *m->version);
	for (uint64_t page = 0; page < m->pages; page++)
		if (draw(s, 8))
			put(m, page);
	if (fd >= 0)
		close(fd);
}

static void change(struct state *s)
{
	struct map *m = &s->maps[draw(s, MAPS)];
	uint64_t first = draw(s, m->pages), n = 1 + draw(s, 16);
	pid_t child;
	int status;

	if (n > m->pages - first)
		n = m->pages - first;
	switch (draw(s, 64)) {
	case 0: /* given back; of shared memory only this process's view is */
		madvise(m->at + first * PAGE, n * PAGE, MADV_DONTNEED);
		if (!m->shared)
			memset(m->version + first, 0, n * sizeof *m->version);
		break;
	case 1: /* unmapped and mapped anew */
		if (draw(s, 8) == 0 && !m->shared) {
			munmap(m->at, m->pages * PAGE);
			make(s, m - s->maps);
		}
		break;
	case 2: { /* moved */
		char *to = must_map(mmap(NULL, m->pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));

		m->at = must_map(mremap(m->at, m->pages * PAGE, m->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		break;
	}
	case 3: /* read only for a while */
		mprotect(m->at + first * PAGE, n * PAGE, PROT_READ);
		for (uint64_t i = 0; i < n; i++)
			check(s, m, first + i, "read only");
		mprotect(m->at + first * PAGE, n * PAGE, PROT_READ | PROT_WRITE);
		break;
	case 4: /* a child sees what its parent has, and changes its own only */
		if ((child = fork()) == 0) {
			for (uint64_t i = 0; i < n; i++)
				check(s, m, first + i, "in a child");
			if (!m->shared)
				memset(m->at + first * PAGE, 0x55, n * PAGE);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			broken("worker %d: a child ended with %x: %s", s->number, status, strerror(errno));
		break;
	case 5 ... 40:
		for (uint64_t i = 0; i < n; i++)
			put(m, first + i);
		break;
	default:
		for (uint64_t i = 0; i < n; i++)
			check(s, m, first + i, "now and then");
	}
}

static void *work(void *argument)
{
	struct worker *w = &shared->workers[(int)(intptr_t)argument];
	/* Of the heap, and so one more memory that has to be right. */
	struct state *s = calloc(1, sizeof *s);
	struct timespec pause = { 0, 1000000000 / operations };

	s->number = (int)(intptr_t)argument;
	s->random = mix(s->number + 1);
	for (int i = 0; i < MAPS; i++) {
		s->maps[i].pages = i < MAPS - 2 ? pages_each / (MAPS - 2) : SHARED;
		s->maps[i].version = calloc(s->maps[i].pages, sizeof *s->maps[i].version);
		make(s, i);
	}
	w->pages = pages_each / (MAPS - 2) * (MAPS - 2) + 2 * SHARED;
	for (;;) {
		if (w->answered != shared->asked) {
			uint64_t asked = shared->asked;

			check_all(s, "asked for");
			w->answered = asked;
		}
		change(s);
		w->operations++;
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void report(char *line, size_t size)
{
	uint64_t asked = ++shared->asked, pages = 0, done = 0;
	struct timespec pause = { 0, 2000000 };

	for (int i = 0; i < processes * threads; i++) {
		while (shared->workers[i].answered < asked && !shared->broken)
			nanosleep(&pause, NULL);
		pages += shared->workers[i].pages;
		done += shared->workers[i].operations;
	}
	if (shared->broken)
		snprintf(line, size, "changing broken: %s", shared->message);
	else
		snprintf(line, size, "changing whole %llu %llu", (unsigned long long)pages, (unsigned long long)done);
}

static void *serve(void *argument)
{
	FILE *in = fdopen((int)(intptr_t)argument, "r"), *out = fdopen(dup((int)(intptr_t)argument), "w");
	char line[4096], answer[512];
	int count = 0;

	while (fgets(line, sizeof line, in)) {
		count++;
		if (!strcmp(line, "check\n")) {
			report(answer, sizeof answer);
			fprintf(out, "%s\n", answer);
		} else {
			fprintf(out, "changing %d %s", count, line);
		}
		fflush(out);
	}
	fclose(in);
	fclose(out);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	pthread_t thread;

	if (argc != 6)
		return 2;
	processes = atoi(argv[2]);
	threads = atoi(argv[3]);
	pages_each = (uint64_t)atoi(argv[4]) << 8;
	operations = atoi(argv[5]);
	shared = must_map(mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	for (int p = 0; p < processes; p++) {
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (int i = 0; i < threads; i++)
				pthread_create(&thread, NULL, work, (void *)(intptr_t)(p * threads + i));
			for (;;)
				pause();
		}
	}
	address.sin_port = htons(atoi(argv[1]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	for (int i = 0; i < processes * threads; i++)
		while (!shared->workers[i].pages)
			usleep(10000);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
		return 1;
	for (;;) {
		int conn = accept(listener, NULL, NULL);

		if (conn >= 0 && pthread_create(&thread, NULL, serve, (void *)(intptr_t)conn) == 0)
			pthread_detach(thread);
	}
}
