/*
 * The pages of a process that CRIU must carry itself, also in memory that is left out of a dump:
 * those with the areas of restartable sequences (rseq(2)), which the C library registers for each
 * thread. CRIU registers them again before the restored memory is registered with its userfaultfd,
 * and the kernel writes there at once: a page that did not come from CRIU would then be one of
 * zeros, and never be filled in.
 *
 * CRIU asks for the areas of a process's threads by ptrace(PTRACE_GET_RSEQ_CONFIGURATION), just
 * before it looks for that process's pages (criu/cr-dump.c, dump_one_task). podd's check after the
 * restore (checkpoint/inplace.go) finds out if it ever does otherwise.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/types.h>

#include "userfault.h"

#define GET_RSEQ_CONFIGURATION 0x420f
#define PAGE 4096ULL

/* struct ptrace_rseq_configuration of include/uapi/linux/ptrace.h of Linux 5.13. */
struct rseq_configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, pad;
};

static uint64_t *pages; /* ascending, if sorted */
static size_t nr_pages, room;
static bool sorted;

static void keep(uint64_t address)
{
	/* CRIU has looked for the last process's pages and has begun with the next. */
	if (sorted) {
		sorted = false;
		nr_pages = 0;
	}
	if (nr_pages == room) {
		size_t more = room ? 2 * room : 64;
		uint64_t *p = realloc(pages, more * sizeof(*p));

		if (!p)
			return; /* The restore will say so. */
		pages = p;
		room = more;
	}
	pages[nr_pages++] = address & -PAGE;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

uint64_t podd_kept_page(uint64_t address)
{
	size_t low = 0, high;

	if (!sorted) {
		if (nr_pages > 1)
			qsort(pages, nr_pages, sizeof(*pages), compare);
		sorted = true;
	}
	for (high = nr_pages; low < high;) {
		size_t middle = (low + high) / 2;

		if (pages[middle] < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < nr_pages ? pages[low] : UINT64_MAX;
}

long ptrace(int request, ...)
{
	static long (*next)(int, ...);
	void *address, *data;
	va_list ap;
	pid_t pid;
	long result;

	va_start(ap, request);
	pid = va_arg(ap, pid_t);
	address = va_arg(ap, void *);
	data = va_arg(ap, void *);
	va_end(ap);
	if (!next)
		next = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
	result = next(request, pid, address, data);
	if (request == GET_RSEQ_CONFIGURATION && result >= (long)sizeof(uint64_t)) {
		const struct rseq_configuration *c = data;

		/* The area may be longer than what is known here, but is aligned to its size. */
		if (c->pointer)
			keep(c->pointer);
	}
	return result;
}
