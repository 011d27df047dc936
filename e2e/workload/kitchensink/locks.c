/* File locks: held by one process, tried by another. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <sys/file.h>

static struct kid flock_kid, fcntl_kid, ofd_kid, lease_kid;
static int held = -1;

static int open_lock(const char *name) { return MUST(open(path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); }

static struct flock range(short type, off_t start, off_t len)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

/* The kids hold the locks; still is what they say when asked. */
static verdict still(void)
{
	EXPECT(fcntl(held, F_GETFD) >= 0, "the descriptor is closed");
	return NULL;
}

static void flock_hold(void)
{
	held = open_lock("flock");
	MUST(flock(held, LOCK_EX));
}
static void flock_setup(void) { kid_start(&flock_kid, flock_hold, still); }
static verdict flock_check(void)
{
	PASS(kid_check(&flock_kid));
	int fd = open_lock("flock");
	EXPECT(flock(fd, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock is gone");
	close(fd);
	return NULL;
}

static void fcntl_hold(void)
{
	held = open_lock("fcntl");
	struct flock write_part = range(F_WRLCK, 10, 20), read_part = range(F_RDLCK, 100, 0);
	MUST(fcntl(held, F_SETLK, &write_part));
	MUST(fcntl(held, F_SETLK, &read_part));
}
static void fcntl_setup(void) { kid_start(&fcntl_kid, fcntl_hold, still); }
static verdict fcntl_check(void)
{
	PASS(kid_check(&fcntl_kid));
	int fd = open_lock("fcntl");
	struct flock l = range(F_WRLCK, 0, 50);
	TRY(fcntl(fd, F_GETLK, &l));
	EXPECT(l.l_type == F_WRLCK && l.l_start == 10 && l.l_len == 20 && l.l_pid == fcntl_kid.pid,
	       "lock of type %d from %ld for %ld by %d", l.l_type, (long)l.l_start, (long)l.l_len, l.l_pid);
	l = range(F_WRLCK, 60, 0);
	TRY(fcntl(fd, F_GETLK, &l));
	EXPECT(l.l_type == F_RDLCK && l.l_start == 100 && l.l_len == 0, "lock of type %d from %ld for %ld", l.l_type, (long)l.l_start, (long)l.l_len);
	close(fd);
	return NULL;
}

static void ofd_hold(void)
{
	held = open_lock("ofd");
	struct flock l = range(F_WRLCK, 5, 5);
	MUST(fcntl(held, F_OFD_SETLK, &l));
}
static void ofd_setup(void) { kid_start(&ofd_kid, ofd_hold, still); }
static verdict ofd_check(void)
{
	PASS(kid_check(&ofd_kid));
	int fd = open_lock("ofd");
	struct flock l = range(F_WRLCK, 0, 0);
	TRY(fcntl(fd, F_OFD_GETLK, &l));
	EXPECT(l.l_type == F_WRLCK && l.l_start == 5 && l.l_len == 5 && l.l_pid == -1,
	       "lock of type %d from %ld for %ld by %d", l.l_type, (long)l.l_start, (long)l.l_len, l.l_pid);
	close(fd);
	return NULL;
}

static void lease_hold(void)
{
	held = open_lock("lease");
	MUST(fcntl(held, F_SETLEASE, F_WRLCK));
}
static verdict lease_still(void)
{
	int lease = TRY(fcntl(held, F_GETLEASE));
	EXPECT(lease == F_WRLCK, "lease is %d, was %d", lease, F_WRLCK);
	return NULL;
}
static void lease_setup(void) { kid_start(&lease_kid, lease_hold, lease_still); }
static verdict lease_check(void) { return kid_check(&lease_kid); }

const struct state lock_states[] = {
	{ "flock", flock_setup, flock_check, 0 },
	{ "fcntl_locks", fcntl_setup, fcntl_check, 0 },
	{ "ofd_locks", ofd_setup, ofd_check, 0 },
	{ "lease", lease_setup, lease_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
