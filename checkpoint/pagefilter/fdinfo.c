/*
 * CRIU reads /proc/self/fdinfo/N of every mapped file and every directory that it looks at, only to
 * find out of which mount it is. In a desktop these are hundreds, and the kernel makes three files of
 * /proc of each. statx(2) says the same in one call (Linux 5.8).
 *
 * Of a file that it was sent by a socket CRIU reads there all that is to be known. That it does by way
 * of /proc/PID, which is therefore not answered, though it is the same directory
 * (criu/proc_parse.c, parse_fdinfo and parse_fdinfo_pid).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fdinfo.h"

/* /proc/self, as CRIU opened it last by that name, or -1. */
static int self = -1;
static dev_t self_dev;
static ino_t self_ino;

void podd_opened(int fd, int is_self)
{
	struct stat st;

	if (fd == self)
		self = -1;
	if (is_self && fd >= 0 && !fstat(fd, &st)) {
		self = fd;
		self_dev = st.st_dev;
		self_ino = st.st_ino;
	}
}

/* The mount of an open file or directory, or 0. */
static uint64_t mount_of(int fd)
{
	struct statx st;

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MNT_ID, &st))
		return 0;
	/* Of others there is more to say. */
	if (!(st.stx_mask & STATX_MNT_ID) || !(S_ISREG(st.stx_mode) || S_ISDIR(st.stx_mode)))
		return 0;
	return st.stx_mnt_id;
}

int podd_open_fdinfo(int dir, const char *path)
{
	/* The text for the mount that was asked for last: most are of one. CRIU reads it to the end
	 * and closes it before it opens the next. */
	static int memory = -1;
	static uint64_t written;
	static const char name[] = "fdinfo/";
	char text[32], *end;
	struct stat st;
	uint64_t id;
	long fd;
	int n;

	if (self < 0 || dir != self || strncmp(path, name, sizeof(name) - 1))
		return -1;
	path += sizeof(name) - 1;
	fd = strtol(path, &end, 10);
	if (end == path || *end || fstat(dir, &st) || st.st_ino != self_ino || st.st_dev != self_dev)
		return -1;
	id = mount_of(fd);
	if (!id)
		return -1;
	if (memory < 0)
		memory = syscall(SYS_memfd_create, "fdinfo", MFD_CLOEXEC);
	if (memory < 0)
		return -1;
	if (id != written) {
		written = 0;
		/* Of the same length always. */
		n = snprintf(text, sizeof(text), "mnt_id:\t%20llu\n", (unsigned long long)id);
		if (pwrite(memory, text, n, 0) != n)
			return -1;
		written = id;
	}
	if (syscall(SYS_lseek, memory, 0, SEEK_SET))
		return -1;
	return fcntl(memory, F_DUPFD_CLOEXEC, 0);
}
