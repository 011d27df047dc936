/*
 * A program of the tests: a tree of processes that have memory in common, and threads. The C library
 * registers an area for restartable sequences for each thread, among the thread's own variables;
 * their addresses are written to /tmp/rseq-PID, which appears when the process has all it is to have.
 *
 *	threads DEPTH THREADS MAPPINGS
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <unistd.h>

#define PAGE 4096
#define MAPPING (32 * PAGE)
#define STACK (128 << 10)

static __thread unsigned char own[3 * PAGE];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t all_there;
static FILE *list;

static void note(unsigned seed)
{
	for (size_t i = 0; i < sizeof(own); i++)
		own[i] = seed + i * 7;
	pthread_mutex_lock(&mutex);
	fprintf(list, "%lx\n", (unsigned long)((char *)__builtin_thread_pointer() + __rseq_offset));
	pthread_mutex_unlock(&mutex);
}

static void *thread(void *seed)
{
	note((unsigned long)seed);
	pthread_barrier_wait(&all_there);
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	int depth, threads, mappings;
	char name[32], unfinished[40];
	pthread_attr_t attributes;
	unsigned char **m;

	if (argc != 4 || __rseq_size == 0)
		return 1;
	depth = atoi(argv[1]), threads = atoi(argv[2]), mappings = atoi(argv[3]);
	m = malloc(mappings * sizeof(*m));
	for (int i = 0; i < mappings; i++) {
		/* Something between them, or else they were one. */
		m[i] = mmap(NULL, MAPPING + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		mprotect(m[i], MAPPING, PROT_READ | PROT_WRITE);
		memset(m[i], i + 1, MAPPING / 2);
	}
	/* Two children each, which have some of it together with their parent and some not. */
	for (; depth > 0; depth--) {
		if (fork() && fork())
			continue;
		for (int i = 0; i < mappings; i++) {
			if (i % 3 == 0)
				memset(m[i] + PAGE, depth + i, 3 * PAGE);
			if (i % 3 == 1)
				madvise(m[i] + 2 * PAGE, PAGE, MADV_DONTNEED);
		}
	}
	snprintf(name, sizeof(name), "/tmp/rseq-%d", getpid());
	snprintf(unfinished, sizeof(unfinished), "%s.new", name);
	list = fopen(unfinished, "w");
	note(getpid());
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_barrier_init(&all_there, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		pthread_t t;

		if (pthread_create(&t, &attributes, thread, (void *)(unsigned long)(getpid() * 31 + i)))
			return 1;
	}
	pthread_barrier_wait(&all_there);
	fclose(list);
	rename(unfinished, name);
	for (;;)
		pause();
}
