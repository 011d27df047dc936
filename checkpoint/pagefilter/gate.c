/*
 * The gate of a restore. podd asks for a restore before there are images: CRIU then reads its
 * configuration, tries what the kernel can do (which takes a process that it makes, stops and kills) and
 * waits here, where it opens the first image, until podd says that the images are complete and may be
 * used. Without the word, also when podd is gone, there is no such image.
 *
 * podd hears first that CRIU waits, and asks one that does not again when it has the images.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gate.h"

#define FIRST_IMAGE "inventory.img"

static int gate = -1;

__attribute__((constructor)) static void close_gate(void)
{
	const char *value = getenv("PODD_GATE");

	if (!value)
		return;
	gate = atoi(value);
	unsetenv("PODD_GATE");
	fcntl(gate, F_SETFD, FD_CLOEXEC);
}

int podd_pass_gate(const char *path)
{
	char word = 0;
	ssize_t n;

	if (gate < 0 || strcmp(path, FIRST_IMAGE))
		return 0;
	n = send(gate, &word, sizeof(word), MSG_NOSIGNAL);
	if (n > 0)
		do
			n = recv(gate, &word, sizeof(word), 0);
		while (n < 0 && errno == EINTR);
	close(gate);
	gate = -1;
	if (n > 0)
		return 0;
	errno = ECANCELED;
	return -1;
}
