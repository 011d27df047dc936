/*
 * Shared memory that podd carries itself (package sharedmem), at both ends of a move.
 *
 * The CRIU of a dump looks for the pages of a segment by lseek(SEEK_DATA) (criu/shmem.c). Of the
 * segments in a table that is shared with podd (checkpoint/shared.go has the same layout), which the
 * variable PODD_SHARED names the descriptor of, it is told that they are empty; that is noted.
 *
 * The CRIU of a restore makes a memfd, gives it its size, and opens the image of its pages,
 * pagemap-shmem-ID.img. Where there is none but a shared-ID.img, the content of the segment is in a
 * memfd of podd's, which the keeper gives away that listens in the directory of the images. That memfd
 * takes the place of the one just made, and the image, which says that there are no pages, that of the
 * missing one. Whatever is not as it should be makes the restore fail.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "podd.h"
#include "shared.h"

#define MAGIC 0x3148534444444f50 /* "PODDSH1" */
#define MAX_SEGMENTS 1024

struct segment {
	uint64_t dev, ino;
	uint64_t cut; /* set here: 1 if CRIU was told that it is empty */
};

struct table {
	uint64_t magic;
	uint64_t nr_segments;
	struct segment segments[MAX_SEGMENTS];
};

/* See sharedmem/doc.go. */
struct request {
	uint32_t op, flags;
	uint64_t id, offset, length;
	char name[256];
};

struct answer {
	uint64_t error, pid;
};

#define OP_GET 4
#define KEEPER "shared.socket"

static struct table *table;
/* The file that was given a size last. A process of a restore has one thread. */
static int sized = -1;

__attribute__((constructor)) static void attach(void)
{
	uint64_t size;

	table = podd_table("PODD_SHARED", MAGIC, sizeof(*table), &size);
}

static int left_out(int fd)
{
	struct stat st;

	if (!table || !table->nr_segments || fstat(fd, &st))
		return 0;
	for (uint64_t i = 0; i < table->nr_segments && i < MAX_SEGMENTS; i++) {
		struct segment *s = &table->segments[i];

		if (s->ino == st.st_ino && s->dev == st.st_dev)
			return s->cut = 1;
	}
	return 0;
}

static off64_t seek(int fd, off64_t offset, int whence)
{
	if (whence == SEEK_DATA && left_out(fd)) {
		errno = ENXIO;
		return -1;
	}
	return syscall(SYS_lseek, fd, offset, whence);
}

/* The two names of one function: which one CRIU uses depends on how it was compiled. */
off_t lseek(int fd, off_t offset, int whence)
{
	return seek(fd, offset, whence);
}

off64_t lseek64(int fd, off64_t offset, int whence)
{
	return seek(fd, offset, whence);
}

int ftruncate(int fd, off_t size)
{
	sized = fd;
	return syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
	sized = fd;
	return syscall(SYS_ftruncate, fd, size);
}

/*
 * A mapping of a memfd that was opened for writing counts as one that can write, unless the memfd was
 * sealed before (Linux 6.7). CRIU seals afterwards, and the kernel refuses that with EBUSY. One opened
 * for reading does not count and is otherwise the same: no shared mapping of such a memfd can be made
 * writable, and a private one needs no more.
 */
int write_sealed(int dir, const char *link)
{
	static const char memfd[] = "/memfd:";
	char target[sizeof(memfd) - 1];
	int fd, seals, error = errno;

	/* Opening any other file might be noticed. */
	if (readlinkat(dir, link, target, sizeof(target)) != sizeof(target) || memcmp(target, memfd, sizeof(target)))
		return 0;
	fd = syscall(SYS_openat, dir, link, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	seals = fcntl(fd, F_GET_SEALS);
	close(fd);
	errno = error;
	return seals >= 0 && seals & F_SEAL_WRITE;
}

/* The memfd of a segment, or -1. */
static int get(int sk, uint64_t id)
{
	struct request request = { .op = OP_GET, .id = id };
	struct answer answer;
	struct iovec iov = { .iov_base = &answer, .iov_len = sizeof(answer) };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c;
	int fd;

	if (send(sk, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
		return -1;
	if (recvmsg(sk, &message, 0) != sizeof(answer) || answer.error)
		return -1;
	c = CMSG_FIRSTHDR(&message);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -1;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* Puts the memfd of a segment in the place of the one that CRIU has made. */
static int substitute(int dir, uint64_t id)
{
	struct stat mine, its;
	int sk, fd, result = -1;

	sk = podd_connect(dir, KEEPER);
	if (sk < 0)
		return -1;
	fd = get(sk, id);
	close(sk);
	if (fd < 0)
		return -1;
	if (sized >= 0 && !fstat(sized, &its) && !fstat(fd, &mine) && its.st_dev == mine.st_dev && its.st_size == mine.st_size &&
	    fcntl(sized, F_GET_SEALS) == fcntl(fd, F_GET_SEALS) && dup2(fd, sized) == sized)
		result = 0;
	close(fd);
	sized = -1;
	return result;
}

int open_shared(int dir, const char *path, int flags)
{
	unsigned long long id;
	char name[64], end;
	int fd, error = errno;

	if (sscanf(path, "pagemap-shmem-%llu.im%c", &id, &end) != 2 || end != 'g')
		return -1;
	snprintf(name, sizeof(name), "shared-%llu.img", id);
	fd = syscall(SYS_openat, dir, name, flags);
	if (fd < 0) {
		errno = error;
		return -1;
	}
	if (substitute(dir, id)) {
		close(fd);
		errno = EIO;
		return -1;
	}
	return fd;
}
