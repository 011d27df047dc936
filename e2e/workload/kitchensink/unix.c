/* Unix sockets, with what is under way in them. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un address(const char *name)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, path(name), sizeof a.sun_path - 1);
	return a;
}

static int bound(int type, const char *name)
{
	struct sockaddr_un a = address(name);
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(bind(fd, (struct sockaddr *)&a, sizeof a));
	return fd;
}

static int connected(int type, const char *name)
{
	struct sockaddr_un a = address(name);
	int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
	MUST(connect(fd, (struct sockaddr *)&a, sizeof a));
	return fd;
}

/* Streams: a pair, a named one, a listener, one shut down, one whose peer is
 * gone. */
static int pair[2], listener, client, server, shut[2], widow, abstract;
static void stream_setup(void)
{
	int ends[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	write_filled(pair[0], 3000, 51);
	write_filled(pair[1], 4000, 52);
	listener = bound(SOCK_STREAM, "stream");
	MUST(listen(listener, 9));
	client = connected(SOCK_STREAM, "stream");
	server = MUST(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	write_filled(client, 100, 53);
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, shut));
	write_filled(shut[0], 100, 54);
	MUST(shutdown(shut[0], SHUT_WR));
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
	write_filled(ends[0], 100, 55);
	close(ends[0]);
	widow = ends[1];
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "kitchensink-%d", getpid());
	abstract = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(abstract, (struct sockaddr *)&a, sizeof a));
	MUST(listen(abstract, 1));
}
static verdict stream_check(void)
{
	char c;
	struct sockaddr_un a = { 0 };
	socklen_t n = sizeof a;
	PASS(read_filled(pair[1], 3000, 51));
	PASS(read_filled(pair[0], 4000, 52));
	PASS(read_filled(server, 100, 53));
	TRY(getsockname(listener, (struct sockaddr *)&a, &n));
	EXPECT(strcmp(a.sun_path, path("stream")) == 0, "its name is \"%s\"", a.sun_path);
	int c2 = connected(SOCK_STREAM, "stream"), s2 = TRY(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	write_filled(c2, 10, 56);
	PASS(read_filled(s2, 10, 56));
	close(c2);
	close(s2);
	PASS(read_filled(shut[1], 100, 54));
	EXPECT(read(shut[1], &c, 1) == 0, "the shutdown is lost");
	EXPECT(send(shut[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "the shut socket can send");
	write_filled(shut[1], 10, 57);
	PASS(read_filled(shut[0], 10, 57));
	PASS(read_filled(widow, 100, 55));
	EXPECT(read(widow, &c, 1) == 0, "no end of file without a peer");
	n = sizeof a;
	TRY(getsockname(abstract, (struct sockaddr *)&a, &n));
	EXPECT(a.sun_path[0] == 0 && strncmp(a.sun_path + 1, "kitchensink-", 12) == 0, "the abstract name is lost");
	return NULL;
}

/* Datagrams keep their bounds and senders. */
static int receiver, sender, nameless, packet_pair[2];
static void dgram_setup(void)
{
	int on = 1;
	receiver = bound(SOCK_DGRAM, "dgram");
	sender = bound(SOCK_DGRAM, "dgram-sender");
	struct sockaddr_un a = address("dgram");
	MUST(connect(sender, (struct sockaddr *)&a, sizeof a));
	nameless = connected(SOCK_DGRAM, "dgram");
	MUST(setsockopt(sender, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	write_filled(sender, 10, 61);
	write_filled(sender, 1000, 62);
	write_filled(nameless, 100, 63);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packet_pair));
	MUST(write(packet_pair[0], "one", 3));
	MUST(write(packet_pair[0], "three", 5));
}
static verdict datagram(size_t n, uint32_t seed, bool named)
{
	char buf[2048];
	struct sockaddr_un from = { 0 };
	socklen_t len = sizeof from;
	PASS(wait_readable(receiver));
	ssize_t got = TRY(recvfrom(receiver, buf, sizeof buf, 0, (struct sockaddr *)&from, &len));
	EXPECT(got == (ssize_t)n, "a datagram has %zd bytes, had %zu", got, n);
	PASS(filled(buf, n, seed, 0));
	EXPECT(!named || strcmp(from.sun_path, path("dgram-sender")) == 0, "a datagram's sender is \"%s\"", from.sun_path);
	return NULL;
}
static verdict dgram_check(void)
{
	char buf[64];
	int on = 0;
	socklen_t n = sizeof on;
	PASS(datagram(10, 61, true));
	PASS(datagram(1000, 62, true));
	PASS(datagram(100, 63, false));
	write_filled(nameless, 20, 64);
	PASS(datagram(20, 64, false));
	TRY(getsockopt(sender, SOL_SOCKET, SO_PASSCRED, &on, &n));
	EXPECT(on == 1, "SO_PASSCRED is lost");
	EXPECT(read(packet_pair[1], buf, sizeof buf) == 3 && memcmp(buf, "one", 3) == 0, "packets have run together");
	EXPECT(read(packet_pair[1], buf, sizeof buf) == 5 && memcmp(buf, "three", 5) == 0, "the second packet is lost");
	return NULL;
}

/* Descriptors on their way, which nobody has open any more. */
static int passing[2];
static void pass(int socket, const int *fds, int n)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = "";
	struct iovec data = { "fds", 3 };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(n * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n * sizeof(int));
	MUST(sendmsg(socket, &m, 0));
}
static void passing_setup(void)
{
	int fds[3], ends[2];
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, passing));
	fds[0] = make_file("passed", 2000, 65);
	MUST(lseek(fds[0], 1000, SEEK_SET));
	MUST(pipe2(ends, O_CLOEXEC));
	write_filled(ends[1], 500, 66);
	close(ends[1]);
	fds[1] = ends[0];
	fds[2] = MUST(memfd_create("passed", MFD_CLOEXEC));
	write_filled(fds[2], 300, 67);
	pass(passing[0], fds, 3);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
}
static verdict passing_check(void)
{
	char control[CMSG_SPACE(4 * sizeof(int))], buf[8] = "", half[1000];
	struct iovec data = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	int fds[3];
	PASS(wait_readable(passing[1]));
	EXPECT(TRY(recvmsg(passing[1], &m, MSG_CMSG_CLOEXEC)) == 3, "the message is \"%s\"", buf);
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	EXPECT(c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof fds), "the descriptors are lost");
	memcpy(fds, CMSG_DATA(c), sizeof fds);
	EXPECT(read(fds[0], half, sizeof half) == 1000, "the file is at another offset");
	PASS(filled(half, 1000, 65, 1000));
	PASS(read_filled(fds[1], 500, 66));
	TRY(lseek(fds[2], 0, SEEK_SET));
	return read_filled(fds[2], 300, 67);
}

const struct state unix_states[] = {
	{ "unix_stream", stream_setup, stream_check, 0 },
	{ "unix_datagram_and_seqpacket", dgram_setup, dgram_check, 0 },
	{ "unix_descriptors_in_flight", passing_setup, passing_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
