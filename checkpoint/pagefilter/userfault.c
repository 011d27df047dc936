/*
 * The userfaultfds of a restore whose memory podd fills in. CRIU makes them itself with lazy_pages,
 * but then maps every private mapping elsewhere first and moves it into place, a third of the
 * restore of many processes. So podd restores without, and each restored process makes its
 * userfaultfd here: when CRIU opens the process's pagemap image, which it does in the process
 * itself, before it maps anything. podd gets the descriptor and registers the memory once it is in
 * place (checkpoint/inplace.go).
 *
 * CRIU has closed all descriptors that it does not know by then and has changed root, so the socket
 * is found in the directory of the images. A process without a userfaultfd is missed there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "podd.h"
#include "userfault.h"

#define SOCKET "userfault.socket"

static bool wanted;

__attribute__((constructor)) static void want(void)
{
	wanted = getenv("PODD_USERFAULT") != NULL;
	unsetenv("PODD_USERFAULT");
}

/* The number N of "pagemap-N.img", or 0. */
static int32_t pagemap_of(const char *path)
{
	unsigned long n;
	char *end;

	if (strncmp(path, "pagemap-", 8))
		return 0;
	n = strtoul(path + 8, &end, 10);
	return strcmp(end, ".img") || n > INT32_MAX ? 0 : n;
}

static void pass(int s, int32_t pid, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = {};
	struct iovec number = { &pid, sizeof(pid) };
	struct msghdr message = {
		.msg_iov = &number, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	while (sendmsg(s, &message, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

void podd_open_image(int dir, const char *path)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP,
	};
	int32_t pid;
	int s, fd;

	if (!wanted || !(pid = pagemap_of(path)))
		return;
	/*
	 * A huge page where CRIU restores a single one would be zeros that are never filled in.
	 * CRIU sets this to what it was in the dump, when the memory is in place.
	 */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	s = podd_connect(dir, SOCKET);
	if (s < 0)
		return; /* podd has CRIU make it. */
	fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0 && !ioctl(fd, UFFDIO_API, &api))
		pass(s, pid, fd);
	if (fd >= 0)
		close(fd);
	close(s);
}
