/* Pipes and FIFOs with data in them. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <sys/stat.h>

static int half[2], full[2], closed[2], shared[2], fifo;
static ssize_t full_bytes;

static void pipes_setup(void)
{
	MUST(pipe2(half, O_CLOEXEC));
	write_filled(half[1], 5000, 41);
	/* To the brim, of an unusual size. */
	MUST(pipe2(full, O_CLOEXEC | O_NONBLOCK));
	MUST(fcntl(full[1], F_SETPIPE_SZ, 128 * 1024));
	char buf[4096];
	for (;;) {
		fill(buf, sizeof buf, 42, full_bytes);
		ssize_t n = write(full[1], buf, sizeof buf);
		if (n < 0 && errno == EAGAIN)
			break;
		full_bytes += MUST(n);
	}
	/* The writer is gone, the data is not. */
	MUST(pipe2(closed, O_CLOEXEC));
	write_filled(closed[1], 100, 43);
	close(closed[1]);
}
static verdict pipes_check(void)
{
	char c;
	PASS(read_filled(half[0], 5000, 41));
	EXPECT(fcntl(full[1], F_GETPIPE_SZ) == 128 * 1024, "its size is %d, was %d", fcntl(full[1], F_GETPIPE_SZ), 128 * 1024);
	EXPECT(fcntl(full[0], F_GETFL) & O_NONBLOCK, "O_NONBLOCK is lost");
	EXPECT(write(full[1], "x", 1) == -1 && errno == EAGAIN, "the full one is not full any more");
	PASS(read_filled(full[0], full_bytes, 42));
	PASS(read_filled(closed[0], 100, 43));
	EXPECT(read(closed[0], &c, 1) == 0, "no end of file without a writer");
	return NULL;
}

/* Between two processes, by name. */
static struct kid pipe_kid;
static void pipe_kid_setup(void)
{
	/* The kid has none of its parent's descriptors: it opens the FIFO. */
	fifo = MUST(open(path("fifo-kid"), O_RDWR | O_CLOEXEC));
	write_filled(fifo, 300, 44);
}
static verdict pipe_kid_check(void)
{
	write_filled(fifo, 300, 45);
	return NULL;
}
static void fifo_setup(void)
{
	MUST(mkfifo(path("fifo-kid"), 0600));
	shared[0] = MUST(open(path("fifo-kid"), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	kid_start(&pipe_kid, pipe_kid_setup, pipe_kid_check);
	/* One whose name is gone. */
	MUST(mkfifo(path("fifo-deleted"), 0600));
	shared[1] = MUST(open(path("fifo-deleted"), O_RDWR | O_CLOEXEC));
	MUST(unlink(path("fifo-deleted")));
	write_filled(shared[1], 200, 46);
}
static verdict fifo_check(void)
{
	PASS(read_filled(shared[0], 300, 44));
	PASS(kid_check(&pipe_kid));
	PASS(read_filled(shared[0], 300, 45));
	return read_filled(shared[1], 200, 46);
}

const struct state pipe_states[] = {
	{ "pipes", pipes_setup, pipes_check, 0 },
	{ "fifos", fifo_setup, fifo_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
