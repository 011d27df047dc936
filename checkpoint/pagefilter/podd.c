/*
 * How the library reaches podd: by tables in files that both map, whose descriptors CRIU has inherited
 * (checkpoint/tablefile.go), and by sockets.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "podd.h"

void *podd_table(const char *variable, uint64_t magic, size_t least, uint64_t *size)
{
	const char *value = getenv(variable);
	struct stat st;
	uint64_t *t;
	int fd;

	if (!value)
		return NULL;
	fd = atoi(value);
	/* For programs that CRIU starts the number means another file. */
	unsetenv(variable);
	if (fstat(fd, &st) || st.st_size < (off_t)least)
		return NULL;
	t = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (t == MAP_FAILED)
		return NULL;
	if (*t != magic) {
		munmap(t, st.st_size);
		return NULL;
	}
	*size = st.st_size;
	return t;
}

/* The name is relative to the directory: that is short, and has no other in the root of a process that
 * is being restored, which may see no /proc. */
int podd_connect(int dir, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int here, s;

	strncpy(address.sun_path, name, sizeof(address.sun_path) - 1);
	here = syscall(SYS_openat, AT_FDCWD, ".", O_PATH | O_CLOEXEC, 0);
	if (here < 0)
		return -1;
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s >= 0 && (fchdir(dir) || connect(s, (struct sockaddr *)&address, sizeof(address)))) {
		close(s);
		s = -1;
	}
	if (fchdir(here) && s >= 0) {
		close(s);
		s = -1;
	}
	close(here);
	return s;
}
