/*
 * mutate SEED PROCESSES: changes its memory in every way that the tests can
 * think of, and forks up to PROCESSES times at once; it never ends by itself.
 * mutate fill MIB RATE: fills so many MiB and then changes RATE MiB a second,
 * page by page, all over.
 * mutate many PROCESSES MAPPINGS THREADS: so many processes with so many mappings
 * each, every third of them large enough to be carried, and threads that wait.
 * It writes "ready" once there is something to see.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#define PAGE 4096UL
#define SLOTS 24

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static struct slot {
	char *base;
	size_t pages;
	int writable, guarded, shared;
} slots[SLOTS];

static void change(struct slot *s)
{
	size_t first = next() % s->pages, n = 1 + next() % 40;

	if (!s->writable)
		return;
	for (size_t i = first; i < s->pages && i < first + n; i++) {
		char *page = s->base + i * PAGE;

		switch (next() % 4) {
		case 0:
			memset(page, 0, PAGE);
			break;
		case 1:
			memset(page, (int)next(), PAGE);
			break;
		default:
			*(uint64_t *)(page + next() % 512 * 8) = next();
		}
	}
}

static void map(struct slot *s)
{
	size_t pages = 1 + next() % (next() % 8 ? 100 : 2000);
	int prot = PROT_READ | PROT_WRITE;

	if (next() % 16 == 0)
		prot |= PROT_EXEC;
	s->guarded = 0;
	if (s->base && next() % 2) {
		s->shared = 0;
		/* Over what is there, the same address with new content. */
		mmap(s->base, s->pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		s->writable = 1;
		return;
	}
	if (s->base)
		munmap(s->base, s->pages * PAGE);
	s->shared = next() % 12 == 0;
	s->base = mmap(NULL, pages * PAGE, prot, (s->shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	if (s->base == MAP_FAILED)
		s->base = NULL;
	s->pages = pages;
	s->writable = 1;
}

static void step(void)
{
	struct slot *s = &slots[next() % SLOTS];
	size_t first, n;
	char *moved;

	if (!s->base) {
		map(s);
		return;
	}
	first = next() % s->pages;
	n = 1 + next() % (s->pages - first);
	switch (next() % 40) {
	case 0:
		map(s);
		break;
	case 1:
		munmap(s->base, s->pages * PAGE);
		s->base = NULL;
		break;
	case 2:
		/* The end only, so that a slot stays one range. */
		if (first > 0) {
			munmap(s->base + first * PAGE, (s->pages - first) * PAGE);
			s->pages = first;
		}
		break;
	case 3:
		mprotect(s->base, s->pages * PAGE, next() % 2 ? PROT_NONE : PROT_READ);
		s->writable = 0;
		break;
	case 4:
		mprotect(s->base, s->pages * PAGE, PROT_READ | PROT_WRITE);
		s->writable = !s->guarded;
		break;
	case 5:
		if (s->shared)
			break; /* what it is grown by can't be touched */
		n = 1 + next() % 200;
		moved = mremap(s->base, s->pages * PAGE, n * PAGE, MREMAP_MAYMOVE);
		if (moved != MAP_FAILED) {
			s->base = moved;
			s->pages = n;
		}
		break;
	case 6:
	case 7:
		madvise(s->base + first * PAGE, n * PAGE, MADV_DONTNEED);
		break;
	case 8:
		madvise(s->base + first * PAGE, PAGE, MADV_GUARD_INSTALL);
		if (next() % 2) {
			madvise(s->base + first * PAGE, PAGE, MADV_GUARD_REMOVE);
		} else {
			/* Nothing is written there any more. */
			s->writable = 0;
			s->guarded = 1;
		}
		break;
	case 9:
		madvise(s->base, s->pages * PAGE, next() % 2 ? MADV_WIPEONFORK : MADV_KEEPONFORK);
		break;
	case 10: {
		/* The heap grows and shrinks. */
		static size_t grown;
		size_t more = next() % 64 * PAGE;

		if (grown > 1024 * PAGE) {
			sbrk(-(intptr_t)grown);
			grown = 0;
		}
		memset(sbrk((intptr_t)more), (int)next(), more);
		grown += more;
		break;
	}
	case 11:
		/* Read only: the zero page. */
		if (s->writable)
			for (size_t i = first; i < s->pages; i += 3)
				(void)*(volatile char *)(s->base + i * PAGE);
		break;
	default:
		change(s);
	}
}

static void *churn(void *arg)
{
	uint64_t x = (uint64_t)(uintptr_t)arg;
	char *mine = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (;;) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		*(uint64_t *)(mine + (x >> 33) % (64 * PAGE / 8) * 8) = x;
		if ((x >> 40) % 64 == 0)
			nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	}
	return NULL;
}

static void fill(size_t mib, size_t rate)
{
	size_t pages = mib << 8, each = rate << 8;
	char *m = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0; i < pages * PAGE / 8; i++)
		((uint64_t *)m)[i] = next();
	write(1, "ready\n", 6);
	for (;;) {
		for (size_t i = 0; i < each / 100; i++)
			*(uint64_t *)(m + next() % pages * PAGE) = next();
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
}

static void *wait_for_ever(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void many(int processes, int mappings, int threads)
{
	pthread_t thread;

	int done[2];
	char byte;

	if (pipe(done))
		exit(1);
	for (int p = 0; p < processes - 1; p++)
		if (fork() == 0)
			break;
	for (int i = 0; i < mappings; i++) {
		size_t size = (i % 3 ? 1 : 32) * PAGE;
		/* A page between them, or they would be one. */
		char *m = mmap(NULL, size + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		mprotect(m, size, PROT_READ | PROT_WRITE);
		memset(m, 1 + i, size);
	}
	for (int i = 1; i < threads; i++)
		pthread_create(&thread, NULL, wait_for_ever, NULL);
	write(done[1], "", 1);
	if (getpid() == 1) {
		for (int p = 0; p < processes; p++)
			if (read(done[0], &byte, 1) != 1)
				exit(1);
		write(1, "ready\n", 6);
	}
	wait_for_ever(NULL);
}

int main(int argc, char **argv)
{
	int processes;
	pthread_t thread;

	if (argc == 4 && !strcmp(argv[1], "fill")) {
		state = 88172645463325252ULL;
		fill(atoi(argv[2]), atoi(argv[3]));
	}
	if (argc == 5 && !strcmp(argv[1], "many"))
		many(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	if (argc != 3)
		return 2;
	state = strtoull(argv[1], NULL, 10) * 2654435761ULL + 88172645463325252ULL;
	processes = atoi(argv[2]);
	signal(SIGCHLD, SIG_IGN);
	pthread_create(&thread, NULL, churn, (void *)(uintptr_t)state);
	for (unsigned long i = 1;; i++) {
		step();
		if (i == 1500 && getpid() == 1)
			write(1, "ready\n", 6);
		if (i % 64 == 0)
			nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
		if (i % 2000 == 0 && processes > 0) {
			pid_t child = fork();

			if (child == 0) {
				/* Its thread is not there, and it may end or become another. */
				state ^= (uint64_t)getpid() * 0x9e3779b97f4a7c15ULL;
				next();
				processes = 0;
				i = 1;
				continue;
			}
			processes--;
		}
		if (getpid() != 1 && i % 9000 == 0) {
			char seed[32];

			if (next() % 2)
				_exit(0);
			snprintf(seed, sizeof(seed), "%lu", (unsigned long)(next() >> 8));
			execl("/proc/self/exe", argv[0], seed, "0", NULL);
		}
		/* The first process starts others for those that ended. */
		if (getpid() == 1 && i % 8000 == 0)
			processes = processes < 2 ? processes + 1 : processes;
	}
}
