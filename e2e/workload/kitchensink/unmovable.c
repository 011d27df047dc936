/*
 * What CRIU 4.2.1 does not carry, each by itself: a dump fails. A move must
 * refuse them before anything is frozen, by name. Run them one at a time.
 */
#define _GNU_SOURCE
#include "sink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int fd, other;

static verdict open_still(void)
{
	EXPECT(fcntl(fd, F_GETFD) != -1, "the descriptor is closed");
	return NULL;
}

/* A pipe that keeps the bounds of what is written. */
static void pipe_packets_setup(void)
{
	int ends[2];
	MUST(pipe2(ends, O_CLOEXEC | O_DIRECT));
	fd = ends[0];
	other = ends[1];
	MUST(write(other, "one", 3));
	MUST(write(other, "three", 5));
}
static verdict pipe_packets_check(void)
{
	char buf[16];
	EXPECT(read(fd, buf, sizeof buf) == 3, "packets have run together");
	return NULL;
}

/* A message in the queue of a socket that asks for its sender's credentials. */
static void unix_credentials_setup(void)
{
	int ends[2], on = 1;
	MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends));
	fd = ends[0];
	other = ends[1];
	MUST(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	MUST(write(other, "hello", 5));
}
static verdict unix_credentials_check(void)
{
	char buf[16];
	EXPECT(TRY(read(fd, buf, sizeof buf)) == 5, "the message is lost");
	return NULL;
}

/* A connection that nobody has accepted yet, with data in it. */
static void unix_backlog_setup(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, path("backlog"), sizeof a.sun_path - 1);
	fd = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(fd, (struct sockaddr *)&a, sizeof a));
	MUST(listen(fd, 5));
	other = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(other, (struct sockaddr *)&a, sizeof a));
	write_filled(other, 100, 1);
}
static verdict backlog_check(void)
{
	PASS(wait_readable(fd));
	int s = TRY(accept4(fd, NULL, NULL, SOCK_CLOEXEC));
	return read_filled(s, 100, 1);
}

static void listen_and_connect(int protocol)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof a;
	fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol));
	MUST(bind(fd, (struct sockaddr *)&a, n));
	MUST(listen(fd, 5));
	MUST(getsockname(fd, (struct sockaddr *)&a, &n));
	other = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol));
	MUST(connect(other, (struct sockaddr *)&a, n));
	write_filled(other, 100, 1);
}
static void tcp_backlog_setup(void) { listen_and_connect(0); }
static void mptcp_setup(void) { listen_and_connect(IPPROTO_MPTCP); }

/* POSIX message queues. */
static char queue_name[64];
static void posix_queue_setup(void)
{
	struct mq_attr attr = { .mq_maxmsg = 5, .mq_msgsize = 64 };
	snprintf(queue_name, sizeof queue_name, "/kitchensink-%d", getpid());
	fd = MUST(mq_open(queue_name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr));
	MUST(mq_send(fd, "low", 4, 1));
	MUST(mq_send(fd, "high", 5, 9));
}
static verdict posix_queue_check(void)
{
	char buf[64];
	unsigned priority;
	EXPECT(TRY(mq_receive(fd, buf, sizeof buf, &priority)) == 5 && priority == 9, "message \"%s\" of priority %u", buf, priority);
	TRY(mq_unlink(queue_name));
	return NULL;
}

/* One process traced by another. */
static pid_t traced;
static int traced_main(void)
{
	for (;;)
		pause();
	return 0;
}
static void ptrace_setup(void)
{
	traced = spawn(traced_main);
	MUST(ptrace(PTRACE_SEIZE, traced, NULL, NULL));
}
static verdict ptrace_check(void)
{
	int status;
	TRY(ptrace(PTRACE_INTERRUPT, traced, NULL, NULL));
	TRY(waitpid(traced, &status, 0));
	return NULL;
}

/* An answer of the kernel on a netlink socket that nobody has read yet. */
static void netlink_unread_setup(void)
{
	struct { struct nlmsghdr h; struct rtgenmsg g; } request = {
		{ .nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP }, { AF_UNSPEC } };
	fd = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	MUST(send(fd, &request, sizeof request, 0));
}
static verdict netlink_unread_check(void) { return wait_readable(fd); }

static void io_uring_setup_(void)
{
	struct io_uring_params p = { 0 };
	fd = MUST(syscall(SYS_io_uring_setup, 4, &p));
}
static void userfaultfd_setup(void) { fd = MUST(syscall(SYS_userfaultfd, O_CLOEXEC)); }
static void perf_setup(void)
{
	struct perf_event_attr a = { .type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_TASK_CLOCK, .exclude_kernel = 1 };
	fd = MUST(syscall(SYS_perf_event_open, &a, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
}
static void bpf_setup(void)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr a = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code, .license = (uintptr_t)"GPL" };
	fd = MUST(syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof a));
}
static void memfd_secret_setup(void)
{
	fd = MUST(syscall(SYS_memfd_secret, O_CLOEXEC));
	MUST(ftruncate(fd, 4096));
}

/* A process in a user namespace of its own. */
static struct kid userns_kid;
static void userns_setup(void) { MUST(unshare(CLONE_NEWUSER)); }
static verdict userns_inside(void)
{
	char buf[4096];
	int f = TRY(open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC));
	ssize_t n = TRY(read(f, buf, sizeof buf));
	close(f);
	EXPECT(n == 0, "it is not in its namespace any more");
	return NULL;
}
static void userns_start(void) { kid_start(&userns_kid, userns_setup, userns_inside); }
static verdict userns_check(void) { return kid_check(&userns_kid); }

const struct state unmovable_states[] = {
	{ "pipe_packets", pipe_packets_setup, pipe_packets_check, 0 },
	{ "unix_queued_credentials", unix_credentials_setup, unix_credentials_check, 0 },
	{ "unix_backlog_with_data", unix_backlog_setup, backlog_check, 0 },
	{ "tcp_backlog", tcp_backlog_setup, backlog_check, 0 },
	{ "mptcp", mptcp_setup, backlog_check, 0 },
	{ "posix_queue", posix_queue_setup, posix_queue_check, 0 },
	{ "ptrace", ptrace_setup, ptrace_check, 0 },
	{ "netlink_unread", netlink_unread_setup, netlink_unread_check, 0 },
	{ "io_uring", io_uring_setup_, open_still, 0 },
	{ "userfaultfd", userfaultfd_setup, open_still, 0 },
	{ "perf_event", perf_setup, open_still, 0 },
	{ "bpf_program", bpf_setup, open_still, 0 },
	{ "memfd_secret", memfd_secret_setup, open_still, 0 },
	{ "user_namespace", userns_start, userns_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
