/*
 * podd-pagefilter.so is preloaded into the CRIU of a dump. It leaves out memory that podd carries
 * to the target itself, so that a dump takes no longer however much of it there is.
 *
 * CRIU asks the kernel which pages of a mapping there are to dump by ioctl(PAGEMAP_SCAN) on
 * /proc/PID/pagemap (criu/pagemap-cache.c). Here the ranges that are left out are cut from the
 * question: their page tables are not even walked. /proc/PID/smaps, which CRIU reads for the flags
 * of each mapping, walks them too, to count pages nobody asks for: CRIU gets the text from podd, and
 * with it what the links in /proc/PID/map_files say, but for those of sealed memfds (shared.c). All
 * other system calls pass through untouched.
 *
 * Ranges and texts are in a table that is shared with podd (checkpoint/leaveout.go has the same
 * layout): a file whose descriptor the variable PODD_PAGEFILTER names. podd fills it when the pod
 * is frozen, the ranges before CRIU looks at the pod's memory; here is noted what was made use of.
 *
 * It also knows pages that CRIU carries in any case (rseq.c), says of which mount a file is (fdinfo.c),
 * and makes userfaultfds in a restore (userfault.c), which it lets begin when there are images (gate.c).
 * Shared memory is in shared.c.
 *
 * In the CRIU of a restore, as in that of a dump, it asks for the processor's features before CRIU
 * is told what to do: in a virtual machine that takes milliseconds, and CRIU remembers the answer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fdinfo.h"
#include "gate.h"
#include "podd.h"
#include "shared.h"
#include "userfault.h"

#define MAGIC 0x32464c4444444f50 /* "PODDLF2": what podd wrote is of this layout */
#define MAX_RANGES 65536
#define MAX_TEXTS 1024

#define CUT 1 /* the range was cut from a question */
#define IN_IMAGE 2 /* podd puts its pages into the image */

#define PLAIN 0x10000 /* an ordinary file: CRIU need not open it to see that it is one */

struct range {
	uint64_t pid; /* as CRIU sees it */
	uint64_t start, end;
	uint64_t flags; /* CUT is set here, IN_IMAGE by podd */
};

struct text {
	uint64_t pid;
	uint64_t offset, size; /* of the text in the table */
	uint64_t read; /* set here: 1 if CRIU got it */
	uint64_t files, nr_files; /* offset of the files of its mappings, which ascend */
};

struct file {
	uint64_t start, end; /* of the mapping */
	uint64_t mode; /* of its link in map_files; 0 if there is none. PLAIN beside it */
};

struct table {
	uint64_t magic;
	uint64_t attached; /* set here: 1 */
	uint64_t nr_ranges, nr_texts;
	/* On which an image is open once CRIU asks for it, or 0 if podd answers; and what tells podd to look. */
	uint64_t page_socket, bell;
	struct range ranges[MAX_RANGES]; /* in order of pid and start; they don't overlap */
	struct text texts[MAX_TEXTS];
};

/* From include/uapi/linux/fs.h of Linux 6.7; older headers don't have it. */
struct page_region {
	uint64_t start, end, categories;
};

struct pm_scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE 4096

static struct table *table;
static uint64_t table_size;

__attribute__((constructor)) static void attach(void)
{
	int (*has_feature)(unsigned int);

	if (!getenv("PODD_PAGEFILTER"))
		return;
	/* A CRIU without such a function is as fast as it is. */
	has_feature = (int (*)(unsigned int))dlsym(RTLD_DEFAULT, "compel_cpu_has_feature");
	if (has_feature)
		has_feature(0);
	table = podd_table("PODD_PAGEFILTER", MAGIC, sizeof(*table), &table_size);
	if (table)
		table->attached = 1;
}

/* The process of an open /proc/PID or of a file in it, or 0. */
static uint64_t process_of(int fd)
{
	char link[32] = "/proc/self/fd/", path[64], digits[12];
	int i = sizeof(digits);
	ssize_t n;

	digits[--i] = 0;
	do
		digits[--i] = '0' + fd % 10;
	while ((fd /= 10) && i);
	strcat(link, digits + i);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return 0;
	path[n] = 0;
	return strncmp(path, "/proc/", 6) ? 0 : strtoull(path + 6, NULL, 10);
}

static uint64_t nr_ranges(void)
{
	return table->nr_ranges < MAX_RANGES ? table->nr_ranges : MAX_RANGES;
}

/* The first range of the process that ends after an address; the table's end if there is none. */
static struct range *find(uint64_t pid, uint64_t address)
{
	uint64_t low = 0, high = nr_ranges();

	while (low < high) {
		uint64_t middle = (low + high) / 2;
		struct range *r = &table->ranges[middle];

		if (r->pid < pid || (r->pid == pid && r->end <= address))
			low = middle + 1;
		else
			high = middle;
	}
	return &table->ranges[low];
}

/*
 * The pagemap that CRIU opened last, and whose it is. It asks thousands of questions about it, and
 * a descriptor that was closed since is none of another pagemap's: that would have been opened last.
 */
static int pagemap = -1;
static uint64_t pagemap_of;

/* Asks about the parts of [start, end) that are not left out, one after the other. */
static long scan(int fd, struct pm_scan_arg *arg)
{
	uint64_t pid = fd == pagemap ? pagemap_of : process_of(fd), at = arg->start, found = 0;
	struct range *end = &table->ranges[nr_ranges()];
	struct range *r = find(pid, at);

	for (;;) {
		struct pm_scan_arg part = *arg;
		uint64_t kept = UINT64_MAX;
		long n;

		while (r < end && r->pid == pid && r->end <= at)
			r++;
		while (r < end && r->pid == pid && r->start <= at && at < arg->end) {
			r->flags |= CUT;
			kept = r->flags & IN_IMAGE ? UINT64_MAX : podd_kept_page(at);
			if (kept == at)
				break;
			at = r->end < arg->end ? r->end : arg->end;
			if (kept < at)
				at = kept;
			else
				r++;
		}
		/* A full answer that ends early is usual: CRIU asks on from walk_end. */
		if (at >= arg->end || found == arg->vec_len)
			break;
		part.start = at;
		if (kept == at)
			part.end = at + PAGE;
		else if (r < end && r->pid == pid && r->start < arg->end)
			part.end = r->start;
		part.vec += found * sizeof(struct page_region);
		part.vec_len -= found;
		n = syscall(SYS_ioctl, fd, SCAN, &part);
		if (n < 0)
			return n;
		found += n;
		at = part.walk_end;
		if (at < part.end)
			break;
	}
	arg->walk_end = at;
	return found;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	/* A question about other things, such as guard pages, is about all memory. */
	if (request == SCAN && table && table->nr_ranges && ((struct pm_scan_arg *)arg)->return_mask & PAGE_IS_PRESENT)
		return scan(fd, arg);
	return syscall(SYS_ioctl, fd, request, arg);
}

static struct text *find_text(uint64_t pid)
{
	for (uint64_t i = 0; i < table->nr_texts && i < MAX_TEXTS; i++) {
		struct text *t = &table->texts[i];

		if (t->pid == pid && t->offset <= table_size && t->size <= table_size - t->offset &&
		    t->files <= table_size && t->nr_files <= (table_size - t->files) / sizeof(struct file))
			return t;
	}
	return NULL;
}

/* A file with podd's text in place of a process's smaps, or -1. */
static int open_text(uint64_t pid)
{
	struct text *t = find_text(pid);
	uint64_t done = 0;
	int fd;

	if (!t)
		return -1;
	fd = syscall(SYS_memfd_create, "smaps", MFD_CLOEXEC);
	if (fd < 0)
		return -1;
	while (done < t->size) {
		ssize_t n = pwrite(fd, (char *)table + t->offset + done, t->size - done, done);

		if (n <= 0) {
			close(fd);
			return -1;
		}
		done += n;
	}
	t->read = 1;
	return fd;
}

/*
 * The directory /proc/PID/map_files that CRIU opened last, and what is known of its links. CRIU
 * looks at them in no other, and opens it for each process.
 */
static int map_files = -1;
static struct text *map_files_of;

/* The file of a mapping, by the name of its link ("START-END", hexadecimal) in such a directory. */
static struct file *find_file(int dir, const char *link)
{
	struct file *files;
	uint64_t start, end, low = 0, high;
	char *at;

	if (dir < 0 || dir != map_files || !map_files_of)
		return NULL;
	start = strtoull(link, &at, 16);
	if (at == link || *at != '-')
		return NULL;
	link = at + 1;
	end = strtoull(link, &at, 16);
	if (at == link || *at)
		return NULL;
	files = (struct file *)((char *)table + map_files_of->files);
	high = map_files_of->nr_files;
	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (files[middle].start < start)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == map_files_of->nr_files || files[low].start != start || files[low].end != end)
		return NULL;
	return &files[low];
}

static int open_noted(int dir, const char *path, int flags, mode_t mode)
{
	int fd = syscall(SYS_openat, dir, path, flags, mode);

	podd_opened(fd, fd >= 0 && !strcmp(path, "self") && process_of(fd) == (uint64_t)getpid());
	return fd;
}

static int open_described(int dir, const char *path, int flags, mode_t mode)
{
	struct file *file;
	int fd;

	if (!table)
		return syscall(SYS_openat, dir, path, flags, mode);
	fd = podd_open_fdinfo(dir, path);
	if (fd >= 0)
		return fd;
	if (!table->nr_texts)
		return open_noted(dir, path, flags, mode);
	if (!strcmp(path, "smaps")) {
		fd = open_text(process_of(dir));
		if (fd >= 0)
			return fd;
	}
	file = find_file(dir, path);
	if (file && !file->mode) {
		errno = ENOENT;
		return -1;
	}
	if (file && file->mode & PLAIN)
		flags |= O_PATH;
	fd = open_noted(dir, path, flags, mode);
	if (!strcmp(path, "pagemap")) {
		pagemap = fd;
		pagemap_of = process_of(fd);
	}
	if (!strcmp(path, "map_files")) {
		map_files = fd;
		map_files_of = find_text(process_of(dir));
	}
	return fd;
}

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
	int fd;

	if (podd_pass_gate(path))
		return -1;
	podd_open_image(dir, path);
	fd = open_described(dir, path, flags, mode);
	if (fd < 0 && errno == ENOENT && (flags & O_ACCMODE) == O_RDONLY)
		fd = open_shared(dir, path, flags);
	return fd;
}

/* The two names of one function: which one CRIU uses depends on how it was compiled. */
#define DEFINE_OPENAT(name)                                                   \
	int name(int dir, const char *path, int flags, ...)                    \
	{                                                                      \
		mode_t mode = 0;                                               \
		va_list ap;                                                    \
                                                                              \
		if (flags & (O_CREAT | O_TMPFILE)) {                           \
			va_start(ap, flags);                                   \
			mode = va_arg(ap, mode_t);                             \
			va_end(ap);                                            \
		}                                                              \
		return open_at(dir, path, flags, mode);                        \
	}

DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

/*
 * CRIU wants to know of a link whether it is there, and its permissions: how the file was opened. So
 * it maps a file that was open for writing from such a descriptor again, and seals memfds once all is
 * mapped. Of one that is sealed against writing only the owner's permission to read is said: see
 * write_sealed.
 */
#define DEFINE_FSTATAT(name, type)                                            \
	int name(int dir, const char *path, struct type *st, int flags)        \
	{                                                                      \
		struct file *file = NULL;                                      \
		int result = 0;                                                \
                                                                              \
		if (table && flags == AT_SYMLINK_NOFOLLOW)                     \
			file = find_file(dir, path);                           \
		if (!file) {                                                   \
			result = syscall(SYS_newfstatat, dir, path, st, flags); \
		} else if (!file->mode) {                                      \
			errno = ENOENT;                                        \
			return -1;                                             \
		} else {                                                       \
			memset(st, 0, sizeof(*st));                            \
			st->st_mode = S_IFLNK | (file->mode & 0777);                    \
		}                                                              \
		if (!result && st->st_mode == (S_IFLNK | 0600) && write_sealed(dir, path)) \
			st->st_mode = S_IFLNK | 0400;                          \
		return result;                                                 \
	}

DEFINE_FSTATAT(fstatat, stat)
DEFINE_FSTATAT(fstatat64, stat64)

/*
 * CRIU asks the page server for each process whether an image has a parent, and waits. There is none.
 * All else that it waits for there is longer than a byte (criu/page-xfer.c), and podd is not woken by
 * what is sent (checkpoint/pagesocket.go).
 */
ssize_t recv(int fd, void *to, size_t size, int flags)
{
	static const uint64_t once = 1;

	if (table && fd > 0 && (uint64_t)fd == table->page_socket) {
		if (size == 1) {
			*(char *)to = 0;
			return 1;
		}
		if (write(table->bell, &once, sizeof(once)) != sizeof(once))
			return -1;
	}
	return recvfrom(fd, to, size, flags, NULL, NULL);
}
