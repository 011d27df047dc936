/* Descriptors that stand for events. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <poll.h>

/* eventfd */
static int counter;
static void eventfd_setup(void)
{
	counter = MUST(eventfd(41, EFD_CLOEXEC | EFD_NONBLOCK));
}
static verdict eventfd_check(void)
{
	eventfd_t v;
	TRY(eventfd_write(counter, 1));
	TRY(eventfd_read(counter, &v));
	EXPECT(v == 42, "the counter is %llu, was 42", (unsigned long long)v);
	return NULL;
}

/* signalfd, with a signal that nobody has read */
static int signals;
static void signalfd_setup(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 9);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	signals = MUST(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
	MUST(sigqueue(getpid(), SIGRTMIN + 9, (union sigval){ .sival_int = 4711 }));
}
static verdict signalfd_check(void)
{
	struct signalfd_siginfo info;
	EXPECT(TRY(read(signals, &info, sizeof info)) == sizeof info, "short read");
	EXPECT((int)info.ssi_signo == SIGRTMIN + 9 && info.ssi_int == 4711, "signal %u with value %d", info.ssi_signo, info.ssi_int);
	return NULL;
}
KID_STATE(signalfd)

/* epoll: what is registered, and in which way; one epoll inside another */
static int inner, outer, ready, quiet, once, edge;
static void add(int epoll, int fd, uint32_t events, uint64_t data)
{
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){ events, { .u64 = data } }));
}
static void epoll_setup(void)
{
	struct epoll_event e;
	inner = MUST(epoll_create1(EPOLL_CLOEXEC));
	outer = MUST(epoll_create1(EPOLL_CLOEXEC));
	ready = MUST(eventfd(1, EFD_CLOEXEC));
	quiet = MUST(eventfd(0, EFD_CLOEXEC));
	once = MUST(eventfd(1, EFD_CLOEXEC));
	edge = MUST(eventfd(0, EFD_CLOEXEC));
	add(inner, once, EPOLLIN | EPOLLONESHOT, 3);
	if (MUST(epoll_wait(inner, &e, 1, 0)) != 1)
		die("epoll is silent");
	add(inner, ready, EPOLLIN, 0x1122334455667788);
	add(inner, quiet, EPOLLIN | EPOLLRDHUP, 2);
	add(inner, edge, EPOLLIN | EPOLLET, 4);
	add(outer, inner, EPOLLIN, 5);
}
static verdict epoll_check(void)
{
	struct epoll_event e[8];
	int n = TRY(epoll_wait(outer, e, 8, 0));
	EXPECT(n == 1 && e[0].data.u64 == 5, "the outer one reports %d events", n);
	n = TRY(epoll_wait(inner, e, 8, 0));
	EXPECT(n == 1 && e[0].data.u64 == 0x1122334455667788 && e[0].events == EPOLLIN, "%d events, the first with data %llx", n, (unsigned long long)e[0].data.u64);
	TRY(eventfd_write(quiet, 1));
	TRY(eventfd_write(edge, 1));
	n = TRY(epoll_wait(inner, e, 8, 0));
	EXPECT(n == 3, "%d events, were to be 3", n);
	n = TRY(epoll_wait(inner, e, 8, 0));
	EXPECT(n == 2, "%d events, were to be 2: edge triggering is lost", n);
	/* The one-shot one sleeps until it is armed again. */
	TRY(epoll_ctl(inner, EPOLL_CTL_MOD, once, &(struct epoll_event){ EPOLLIN | EPOLLONESHOT, { .u64 = 3 } }));
	n = TRY(epoll_wait(inner, e, 8, 0));
	EXPECT(n == 3, "%d events after rearming, were to be 3", n);
	return NULL;
}

/* inotify, on a directory and on a file */
static int watcher, dir_watch, file_watch;
static void inotify_setup(void)
{
	watcher = MUST(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
	MUST(mkdir(path("watched"), 0755));
	close(make_file("watched-file", 10, 1));
	/* Numbers with a gap, so that they can't be right by chance. */
	for (int i = 0; i < 5; i++)
		MUST(inotify_rm_watch(watcher, MUST(inotify_add_watch(watcher, path("watched"), IN_CREATE))));
	dir_watch = MUST(inotify_add_watch(watcher, path("watched"), IN_CREATE | IN_DELETE));
	file_watch = MUST(inotify_add_watch(watcher, path("watched-file"), IN_MODIFY));
	char buf[4096];
	while (read(watcher, buf, sizeof buf) > 0)
		; /* the IN_IGNORED of the removed ones */
}
static verdict inotify_event_is(int watch, uint32_t mask, const char *name)
{
	char buf[sizeof(struct inotify_event) + 256] = "";
	struct inotify_event *e = (struct inotify_event *)buf;
	PASS(wait_readable(watcher));
	TRY(read(watcher, buf, sizeof buf));
	EXPECT(e->wd == watch && e->mask == mask, "event %x of watch %d, was to be %x of %d", e->mask, e->wd, mask, watch);
	EXPECT(!name || strcmp(e->name, name) == 0, "event for %s", e->name);
	return NULL;
}
static verdict inotify_check(void)
{
	close(make_file("watched/new", 0, 0));
	PASS(inotify_event_is(dir_watch, IN_CREATE, "new"));
	int fd = TRY(open(path("watched-file"), O_WRONLY | O_CLOEXEC));
	TRY(write(fd, "x", 1));
	close(fd);
	PASS(inotify_event_is(file_watch, IN_MODIFY, NULL));
	TRY(inotify_rm_watch(watcher, dir_watch));
	return NULL;
}

/* pidfd */
static struct kid pidfd_kid;
static int pidfd;
static void nothing(void) { }
static verdict fine(void) { return NULL; }
static void pidfd_setup(void)
{
	kid_start(&pidfd_kid, nothing, fine);
	pidfd = MUST(syscall(SYS_pidfd_open, pidfd_kid.pid, 0));
}
static verdict pidfd_check(void)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	EXPECT(TRY(poll(&p, 1, 0)) == 0, "the process has ended");
	TRY(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
	return wait_readable(pidfd);
}

const struct state event_states[] = {
	{ "eventfd", eventfd_setup, eventfd_check, 0 },
	{ "signalfd", signalfd_start, signalfd_ask, 0 },
	{ "epoll", epoll_setup, epoll_check, 0 },
	{ "inotify", inotify_setup, inotify_check, 0 },
	{ "pidfd", pidfd_setup, pidfd_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
