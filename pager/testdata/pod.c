/*
 * A program whose memory is missing. It maps regions, registers them with a
 * userfaultfd and gives that away over the socket it has as descriptor 3, as CRIU
 * does for a process it restores. Then it reads, writes, frees, moves, splits and
 * forks at random, and asserts that each page has what it must have: what content()
 * says until it was written to or given up.
 *
 * pod SEED PID REGIONS PAGES OPS THREADS FORKS: fails with status 1 and says why.
 * With POD_FROZEN in the environment it is the pod whose memory is to be moved: it
 * has it, and waits. With POD_MEASURE=N in the environment it measures instead, with POD_STORM=N it
 * forks N times before it does anything else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum { PAGE = 4096, WORDS = PAGE / 8, MAXMAPS = 2048 };

static uint64_t seed, pid, state;

static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "seed %llu process %d: ", (unsigned long long)seed, (int)getpid());
	vfprintf(stderr, format, arguments);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(arguments);
	exit(1);
}

/* splitmix64 (Steele, Lea, Flood 2014), as in the test. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static uint64_t draw(uint64_t below) { return mix(state++) % below; }

/* The word of the frozen pod at an address. A quarter of the pages are zeros. */
static uint64_t content(uint64_t address)
{
	uint64_t page = address / PAGE;

	return mix(seed ^ pid << 48 ^ page) % 4 ? mix(seed ^ pid << 48 ^ address) | 1 : 0;
}

/* What a page must have. */
struct page {
	uint64_t origin;  /* the address it had when frozen; 0: zeros */
	uint64_t value;	  /* that was written */
	uint32_t written; /* the word that was, + 1 */
};

struct map {
	char *at;
	uint64_t pages;
	struct page *page;
};

static struct map maps[MAXMAPS];
static int nmaps;

static void check(const char *at, const struct page *p, const char *when)
{
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t want = p->origin ? content(p->origin + i * 8) : 0;
		uint64_t got = ((const volatile uint64_t *)at)[i];

		if (p->written == i + 1)
			want = p->value;
		if (got != want) {
			errno = 0;
			fail("%s: %p word %d has %llx instead of %llx, origin %llx written %d", when, at, (int)i, (unsigned long long)got,
			     (unsigned long long)want, (unsigned long long)p->origin, p->written);
		}
	}
}

static struct map *pick(uint64_t *first, uint64_t *n)
{
	struct map *m = &maps[draw(nmaps)];

	*first = draw(m->pages);
	*n = 1 + draw(draw(4) ? 8 : m->pages - *first);
	if (*n > m->pages - *first)
		*n = m->pages - *first;
	return m;
}

static struct map *add(char *at, uint64_t pages)
{
	struct map *m = &maps[nmaps++];

	*m = (struct map){ at, pages, calloc(pages, sizeof(struct page)) };
	return m;
}

/* forget takes pages out of a map. */
static void forget(struct map *m, uint64_t first, uint64_t n)
{
	uint64_t after = m->pages - first - n;

	if (after) {
		struct map *rest = add(m->at + (first + n) * PAGE, after);
		memcpy(rest->page, m->page + first + n, after * sizeof(struct page));
	}
	m->pages = first;
	if (!first) {
		free(m->page);
		*m = maps[--nmaps];
	}
}

static void *reserve(uint64_t pages)
{
	void *p = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("reserving %d pages", (int)pages);
	return p;
}

static void move(int keep)
{
	uint64_t first, n;
	struct map *m = pick(&first, &n), *to;
	char *at = reserve(n), *from = m->at + first * PAGE;

	if (nmaps > MAXMAPS - 4)
		return;
	if (mremap(from, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0), at) != at)
		fail("moving %d pages", (int)n);
	to = add(at, n);
	memcpy(to->page, m->page + first, n * sizeof(struct page));
	if (keep)
		memset(m->page + first, 0, n * sizeof(struct page));
	else
		forget(m, first, n);
}

static void grow(void)
{
	struct map *m = &maps[draw(nmaps)];
	uint64_t n = 1 + draw(16);
	char *at;

	if (m->pages > 1 << 16)
		return;
	at = mremap(m->at, m->pages * PAGE, (m->pages + n) * PAGE, MREMAP_MAYMOVE);
	if (at == MAP_FAILED) {
		if (errno == EFAULT) /* it is several mappings */
			return;
		fail("growing");
	}
	m->at = at;
	m->page = realloc(m->page, (m->pages + n) * sizeof(struct page));
	memset(m->page + m->pages, 0, n * sizeof(struct page));
	m->pages += n;
}

static void unmap(void)
{
	uint64_t first, n;
	struct map *m = pick(&first, &n);

	if (nmaps < 2 || nmaps > MAXMAPS - 4 || n > 64)
		return;
	if (munmap(m->at + first * PAGE, n * PAGE))
		fail("unmapping");
	forget(m, first, n);
}

static void drop(void)
{
	uint64_t first, n;
	struct map *m = pick(&first, &n);

	if (n > 64)
		n = 64;
	if (madvise(m->at + first * PAGE, n * PAGE, MADV_DONTNEED))
		fail("dropping");
	memset(m->page + first, 0, n * sizeof(struct page));
}

static void split(void)
{
	uint64_t first, n;
	struct map *m = pick(&first, &n);

	if (mprotect(m->at + first * PAGE, n * PAGE, PROT_READ))
		fail("protecting");
	check(m->at + first * PAGE, &m->page[first], "protected");
	if (draw(2) && mprotect(m->at + first * PAGE, n * PAGE, PROT_READ | PROT_WRITE))
		fail("unprotecting");
	else if (mprotect(m->at + first * PAGE, n * PAGE, PROT_READ | PROT_WRITE))
		fail("unprotecting");
}

static void touch(int writes)
{
	uint64_t first, n;
	struct map *m = pick(&first, &n);

	for (uint64_t i = first; i < first + n && i < first + 16; i++) {
		char *at = m->at + i * PAGE;
		struct page *p = &m->page[i];

		if (writes) {
			uint64_t word = p->written ? p->written - 1 : draw(WORDS);
			p->value = draw(~0ull);
			p->written = word + 1;
			((volatile uint64_t *)at)[word] = p->value;
		}
		if (!writes || draw(2))
			check(at, p, writes ? "written" : "read");
	}
}

static void check_all(void)
{
	for (int i = 0; i < nmaps; i++)
		for (uint64_t j = 0; j < maps[i].pages; j++)
			check(maps[i].at + j * PAGE, &maps[i].page[j], "at the end");
}

/* ask_kernel has the kernel touch every page of a region, in a system call. */
static void ask_kernel(char *at, uint64_t pages)
{
	int ends[2];
	char byte;

	if (pipe(ends))
		fail("making a pipe");
	for (uint64_t i = 0; i < pages; i++)
		if (write(ends[1], at + i * PAGE, 1) != 1 || read(ends[0], &byte, 1) != 1)
			fail("having page %d read", (int)i);
	close(ends[0]);
	close(ends[1]);
}

static int children;

static void reap(void)
{
	int status;

	while (children > 0) {
		if (wait(&status) < 0)
			fail("waiting");
		if (status)
			fail("a child failed: %x", status);
		children--;
	}
}

static void run(uint64_t ops, int forks)
{
	int is_child = 0;

	for (uint64_t i = 0; i < ops; i++) {
		uint64_t what = draw(100);

		if (what < 40)
			touch(0);
		else if (what < 70)
			touch(1);
		else if (what < 77)
			drop();
		else if (what < 84)
			move(0);
		else if (what < 87)
			move(1);
		else if (what < 90)
			grow();
		else if (what < 93)
			unmap();
		else if (what < 97)
			split();
		else if (forks > 0) {
			pid_t child;

			forks--;
			child = fork();
			if (child < 0)
				fail("forking");
			if (!child) {
				state = mix(state + 1);
				ops /= 2;
				forks /= 2;
				children = 0;
				is_child = 1;
			} else {
				state++;
				children++;
			}
		}
	}
	check_all();
	reap();
	if (is_child)
		_exit(0);
}

/* The first region is the threads': they read it while the rest changes. */
struct shared {
	char *at;
	uint64_t pages;
	int number;
};

static void *reader(void *argument)
{
	struct shared *s = argument;
	uint64_t x = mix(seed + 77 + s->number);

	for (uint64_t i = 0; i < s->pages; i++) {
		uint64_t n = mix(x + i) % s->pages;
		struct page p = { .origin = (uint64_t)s->at + n * PAGE };

		check(s->at + n * PAGE, &p, "in a thread");
	}
	for (uint64_t i = 0; i < s->pages; i++)
		check(s->at + i * PAGE, &(struct page){ .origin = (uint64_t)s->at + i * PAGE }, "in a thread, at the end");
	return NULL;
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* measure says how long the first touch of n pages takes, at random or in order. */
static void measure(uint64_t n, int in_order)
{
	struct map *m = &maps[0];
	uint64_t *took = calloc(n, sizeof *took);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = in_order ? i : draw(m->pages);
		struct timespec a, b;

		clock_gettime(CLOCK_MONOTONIC, &a);
		(void)*(volatile char *)(m->at + page * PAGE);
		clock_gettime(CLOCK_MONOTONIC, &b);
		took[i] = (b.tv_sec - a.tv_sec) * 1000000000ull + b.tv_nsec - a.tv_nsec;
	}
	qsort(took, n, sizeof *took, ascending);
	fprintf(stderr, "touches of %llu pages, ns: p50 %llu p90 %llu p99 %llu worst %llu\n", (unsigned long long)n, (unsigned long long)took[n / 2],
		(unsigned long long)took[n * 9 / 10], (unsigned long long)took[n * 99 / 100], (unsigned long long)took[n - 1]);
	free(took);
}

/* storm forks as fast as it can. Each child has all that there was. */
static void storm(int n)
{
	for (int i = 0; i < n; i++) {
		pid_t child = fork();

		if (child < 0)
			fail("forking");
		if (!child) {
			check_all();
			_exit(0);
		}
		children++;
	}
}

static void send_fd(int fd, void *data, size_t length)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec part = { data, length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
	if (sendmsg(3, &message, 0) != (ssize_t)length)
		fail("giving the userfaultfd away");
}

int main(int argc, char **argv)
{
	if (argc != 8)
		return 2;
	seed = strtoull(argv[1], NULL, 0);
	pid = strtoull(argv[2], NULL, 0);
	int regions = atoi(argv[3]);
	uint64_t pages = strtoull(argv[4], NULL, 0), ops = strtoull(argv[5], NULL, 0);
	int threads = atoi(argv[6]), forks = atoi(argv[7]);
	uint64_t list[2 * 64];
	pthread_t thread[16];
	struct shared shared[16];
	char byte;

	/* The same program has its memory at the same addresses each time. */
	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		personality(ADDR_NO_RANDOMIZE);
		execv("/proc/self/exe", argv);
		fail("executing itself");
	}
	state = mix(seed ^ pid * 31);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP |
					      UFFD_FEATURE_EVENT_REMOVE };
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		fail("making a userfaultfd");
	/* What is locked is not carried: all but the regions. */
	if (getenv("POD_FROZEN") && mlockall(MCL_CURRENT))
		fail("locking");
	for (int i = 0; i < regions; i++) {
		char *at = mmap(NULL, (pages + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		struct uffdio_register r;

		if (at == MAP_FAILED || mprotect(at, pages * PAGE, PROT_READ | PROT_WRITE))
			fail("mapping");
		r = (struct uffdio_register){ .range = { (uint64_t)at, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
		if (getenv("POD_FROZEN")) {
			for (uint64_t *w = (uint64_t *)at; w < (uint64_t *)(at + pages * PAGE); w++)
				if (content((uint64_t)w))
					*w = content((uint64_t)w);
		} else if (ioctl(uffd, UFFDIO_REGISTER, &r)) {
			fail("registering");
		}
		list[2 * i] = (uint64_t)at;
		list[2 * i + 1] = (uint64_t)at + pages * PAGE;
		if (getenv("POD_FROZEN"))
			continue; /* it is to have no other memory of any size */
		if (i == 0 && threads) {
			shared[0] = (struct shared){ .at = at, .pages = pages };
			continue;
		}
		struct map *m = add(at, pages);
		for (uint64_t j = 0; j < pages; j++)
			m->page[j].origin = (uint64_t)at + j * PAGE;
	}
	send_fd(uffd, list, 16 * regions);
	close(uffd);
	if (read(3, &byte, 1) != 1)
		fail("waiting for the start");
	for (int i = 0; i < threads; i++) {
		shared[i] = (struct shared){ .at = shared[0].at, .pages = shared[0].pages, .number = i };
		if (pthread_create(&thread[i], NULL, reader, &shared[i]))
			fail("making a thread");
	}
	if (getenv("POD_ASKS_KERNEL"))
		ask_kernel((char *)list[0], pages);
	if (getenv("POD_STORM"))
		storm(atoi(getenv("POD_STORM")));
	if (getenv("POD_MEASURE"))
		measure(atoi(getenv("POD_MEASURE")), getenv("POD_IN_ORDER") != NULL);
	else
		run(ops, forks);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	if (write(3, "k", 1) != 1)
		fail("saying that all is well");
	/* The mappings stay until the test has seen enough. */
	if (read(3, &byte, 1) < 0)
		fail("waiting for the end");
	return 0;
}
