/*
 * TCP connections in the states that matter, with a peer that is a kid on the
 * loopback (tcp_) or another kitchensink somewhere else (peer_).
 *
 * The peer makes one connection per role and says the role in its first byte.
 * Both ends check at the same time, in the order of the roles.
 */
#define _GNU_SOURCE
#include "sink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum role { IDLE, UNREAD, CLOSE_WAIT, FIN_WAIT, ROLES, NEW = ROLES, CHECKS };

/* What UNREAD writes at most; less if the buffers on the way are full. */
#define UNREAD_MAX (4 << 20)

struct connection {
	int fd;
	size_t written; /* UNREAD: what the other end has not read */
};

/* Seeds of the streams, for each direction and role. */
#define FROM_PEER(role) (80 + 2 * (role))
#define FROM_SINK(role) (81 + 2 * (role))

static verdict in_state(int fd, int want)
{
	struct tcp_info info;
	socklen_t n = sizeof info;
	TRY(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	EXPECT(info.tcpi_state == want, "the connection is in state %d, was in %d", info.tcpi_state, want);
	return NULL;
}

static verdict end_of_file(int fd)
{
	char c;
	PASS(wait_readable(fd));
	ssize_t n = TRY(read(fd, &c, 1));
	EXPECT(n == 0, "more data where the end of file was to be");
	return NULL;
}

/* stuff writes without anyone reading until nothing fits any more. */
static void stuff(struct connection *c, uint32_t seed)
{
	char buf[16384];
	while (c->written < UNREAD_MAX) {
		fill(buf, sizeof buf, seed, c->written);
		ssize_t n = send(c->fd, buf, sizeof buf, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return;
		c->written += MUST(n);
	}
}

/* drain reads everything the other end stuffed in and the total it says in
 * eight bytes at the end, and sends its own total, all at once: the buffers
 * are full both ways. */
static verdict drain(struct connection *c, uint32_t seed)
{
	static char buf[UNREAD_MAX + 64];
	uint64_t total = c->written;
	size_t have = 0;
	bool sent = false, ended = false;
	double until = now() + 30;
	while (!sent || !ended) {
		struct pollfd p = { .fd = c->fd, .events = (ended ? 0 : POLLIN) | (sent ? 0 : POLLOUT) };
		EXPECT(now() < until, "only %zu bytes came", have);
		TRY(poll(&p, 1, 1000));
		if (!sent && p.revents & POLLOUT) {
			EXPECT(TRY(send(c->fd, &total, sizeof total, MSG_NOSIGNAL)) == sizeof total, "short write");
			TRY(shutdown(c->fd, SHUT_WR));
			sent = true;
		}
		if (!ended && p.revents & (POLLIN | POLLHUP | POLLERR)) {
			ssize_t n = TRY(recv(c->fd, buf + have, sizeof buf - have, MSG_DONTWAIT));
			ended = n == 0;
			have += n;
			EXPECT(have < sizeof buf, "too many bytes came");
		}
	}
	EXPECT(have >= sizeof total, "%zu bytes came", have);
	memcpy(&total, buf + have - sizeof total, sizeof total);
	EXPECT(total == have - sizeof total, "%zu bytes came, %llu were sent", have - sizeof total, (unsigned long long)total);
	return filled(buf, total, seed, 0);
}

/* The sink's end. */
struct sink {
	int listener;
	struct connection connections[ROLES];
	bool checked;
	char results[CHECKS][512];
	struct kid peer; /* channel is 0 if it is elsewhere */
};

static const struct { int level, name, value; const char *text; } options[] = {
	{ SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE" },
	{ SOL_SOCKET, SO_PRIORITY, 3, "SO_PRIORITY" },
	{ SOL_SOCKET, SO_RCVLOWAT, 3, "SO_RCVLOWAT" },
	{ IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY" },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 777, "TCP_KEEPIDLE" },
	{ IPPROTO_TCP, TCP_KEEPINTVL, 33, "TCP_KEEPINTVL" },
	{ IPPROTO_TCP, TCP_KEEPCNT, 8, "TCP_KEEPCNT" },
};

static void sink_accept(struct sink *s)
{
	for (int i = 0; i < ROLES; i++) {
		char role;
		int fd = MUST(accept4(s->listener, NULL, NULL, SOCK_CLOEXEC));
		if (MUST(read(fd, &role, 1)) != 1 || role < 0 || role >= ROLES || s->connections[(int)role].fd)
			die("a peer that is none");
		s->connections[(int)role].fd = fd;
	}
	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		MUST(setsockopt(s->connections[IDLE].fd, options[i].level, options[i].name, &options[i].value, sizeof(int)));
	stuff(&s->connections[UNREAD], FROM_SINK(UNREAD));
	write_filled(s->connections[FIN_WAIT].fd, 700, FROM_SINK(FIN_WAIT));
	MUST(shutdown(s->connections[FIN_WAIT].fd, SHUT_WR));
	while (in_state(s->connections[FIN_WAIT].fd, TCP_FIN_WAIT2) || in_state(s->connections[CLOSE_WAIT].fd, TCP_CLOSE_WAIT))
		nanosleep(&(struct timespec){ .tv_nsec = 1000 * 1000 }, NULL);
}

static verdict sink_check_role(struct sink *s, int role)
{
	int fd = role < ROLES ? s->connections[role].fd : 0, on = 0;
	socklen_t n = sizeof on;
	switch (role) {
	case IDLE:
		for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
			int value = 0;
			TRY(getsockopt(fd, options[i].level, options[i].name, &value, &n));
			EXPECT(value == options[i].value, "%s is %d, was %d", options[i].text, value, options[i].value);
		}
		PASS(read_filled(fd, 1000, FROM_PEER(IDLE)));
		write_filled(fd, 1000, FROM_SINK(IDLE));
		break;
	case UNREAD:
		TRY(ioctl(fd, FIONREAD, &on));
		EXPECT(on > 0, "nothing was waiting to be read");
		return drain(&s->connections[UNREAD], FROM_PEER(UNREAD));
	case CLOSE_WAIT:
		PASS(read_filled(fd, 1000, FROM_PEER(CLOSE_WAIT)));
		PASS(end_of_file(fd));
		write_filled(fd, 2000, FROM_SINK(CLOSE_WAIT));
		break;
	case FIN_WAIT:
		EXPECT(send(fd, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "the shut connection can send");
		PASS(read_filled(fd, 1000, FROM_PEER(FIN_WAIT)));
		PASS(end_of_file(fd));
		break;
	case NEW:
		TRY(getsockopt(s->listener, SOL_SOCKET, SO_ACCEPTCONN, &on, &n));
		EXPECT(on == 1, "the socket does not listen any more");
		PASS(wait_readable(s->listener));
		fd = TRY(accept4(s->listener, NULL, NULL, SOCK_CLOEXEC));
		PASS(read_filled(fd, 100, FROM_PEER(NEW)));
		write_filled(fd, 100, FROM_SINK(NEW));
		break;
	}
	close(fd);
	return NULL;
}

static const int tcp_states_wanted[ROLES] = {
	[IDLE] = TCP_ESTABLISHED, [UNREAD] = TCP_ESTABLISHED, [CLOSE_WAIT] = TCP_CLOSE_WAIT, [FIN_WAIT] = TCP_FIN_WAIT2,
};

/* sink_result checks everything the first time it is asked for something. The
 * states of the connections come first: the peer gets no further than its first
 * role without us. */
static verdict sink_result(struct sink *s, int role)
{
	if (!s->checked) {
		s->checked = true;
		verdict v;
		for (int i = 0; i < ROLES; i++)
			if ((v = in_state(s->connections[i].fd, tcp_states_wanted[i])))
				strncpy(s->results[i], v, sizeof s->results[i] - 1);
		if (s->peer.channel)
			PASS(kid_ask(&s->peer));
		for (int i = 0; i < CHECKS; i++)
			if ((v = sink_check_role(s, i)) && !*s->results[i])
				strncpy(s->results[i], v, sizeof s->results[i] - 1);
	}
	return *s->results[role] ? s->results[role] : NULL;
}

/* The peer's end. */
static struct connection ends[ROLES];
static struct sockaddr_in sink_address;

static int dial(void)
{
	int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(fd, (struct sockaddr *)&sink_address, sizeof sink_address));
	return fd;
}

static void peer_setup(void)
{
	for (char role = 0; role < ROLES; role++) {
		ends[(int)role].fd = dial();
		MUST(write(ends[(int)role].fd, &role, 1));
	}
	stuff(&ends[UNREAD], FROM_PEER(UNREAD));
	write_filled(ends[CLOSE_WAIT].fd, 1000, FROM_PEER(CLOSE_WAIT));
	MUST(shutdown(ends[CLOSE_WAIT].fd, SHUT_WR));
}

static verdict peer_check_role(int role)
{
	int fd = role < ROLES ? ends[role].fd : 0;
	switch (role) {
	case IDLE:
		write_filled(fd, 1000, FROM_PEER(IDLE));
		PASS(read_filled(fd, 1000, FROM_SINK(IDLE)));
		PASS(end_of_file(fd));
		break;
	case UNREAD:
		return drain(&ends[UNREAD], FROM_SINK(UNREAD));
	case CLOSE_WAIT:
		PASS(read_filled(fd, 2000, FROM_SINK(CLOSE_WAIT)));
		PASS(end_of_file(fd));
		break;
	case FIN_WAIT:
		PASS(in_state(fd, TCP_CLOSE_WAIT));
		PASS(read_filled(fd, 700, FROM_SINK(FIN_WAIT)));
		PASS(end_of_file(fd));
		write_filled(fd, 1000, FROM_PEER(FIN_WAIT));
		break;
	case NEW:
		fd = dial();
		write_filled(fd, 100, FROM_PEER(NEW));
		PASS(read_filled(fd, 100, FROM_SINK(NEW)));
		PASS(end_of_file(fd));
		break;
	}
	close(fd);
	return NULL;
}

static const char *const names[CHECKS] = { "established", "unread_data", "close_wait", "fin_wait2", "listening" };

static verdict peer_check(void)
{
	verdict first = NULL;
	static char text[512];
	for (int i = 0; i < CHECKS; i++) {
		verdict v = peer_check_role(i);
		if (v && !first) {
			snprintf(text, sizeof text, "%s: %s", names[i], v);
			first = text;
		}
	}
	return first;
}

int peer_main(const char *host, const char *port)
{
	sink_address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	if (inet_pton(AF_INET, host, &sink_address.sin_addr) != 1)
		die("%s is no IPv4 address", host);
	peer_setup();
	puts("ready");
	trigger_wait();
	for (int i = 0; i < CHECKS; i++) {
		char name[64];
		snprintf(name, sizeof name, "peer_%s", names[i]);
		report(name, peer_check_role(i));
	}
	return summary();
}

/* The two sets of states. */
static struct sink local, remote;
static int remote_port = -1;

static void listen_at(struct sink *s, in_addr_t address, int port)
{
	int on = 1;
	sink_address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(address), .sin_port = htons(port) };
	socklen_t n = sizeof sink_address;
	s->listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	MUST(bind(s->listener, (struct sockaddr *)&sink_address, sizeof sink_address));
	MUST(listen(s->listener, 16));
	MUST(getsockname(s->listener, (struct sockaddr *)&sink_address, &n));
}

static void local_setup(void)
{
	if (local.listener)
		return;
	listen_at(&local, INADDR_LOOPBACK, 0);
	kid_start(&local.peer, peer_setup, peer_check);
	sink_accept(&local);
}
static verdict local_0(void) { return sink_result(&local, IDLE); }
static verdict local_1(void) { return sink_result(&local, UNREAD); }
static verdict local_2(void) { return sink_result(&local, CLOSE_WAIT); }
static verdict local_3(void) { return sink_result(&local, FIN_WAIT); }
static verdict local_4(void) { return sink_result(&local, NEW); }
static verdict local_peer(void)
{
	PASS(sink_result(&local, IDLE));
	return kid_answer(&local.peer);
}

const struct state tcp_states[] = {
	{ "tcp_established", local_setup, local_0, 0 },
	{ "tcp_unread_data", local_setup, local_1, 0 },
	{ "tcp_close_wait", local_setup, local_2, 0 },
	{ "tcp_fin_wait2", local_setup, local_3, 0 },
	{ "tcp_listening", local_setup, local_4, 0 },
	{ "tcp_other_end", local_setup, local_peer, 0 },
	{ NULL, NULL, NULL, 0 },
};

void tcp_expect_peer(int port) { remote_port = port; }
bool tcp_peer_expected(void) { return remote_port >= 0; }

static void remote_setup(void)
{
	if (remote.listener)
		return;
	listen_at(&remote, INADDR_ANY, remote_port);
	printf("listening %d\n", ntohs(sink_address.sin_port));
	sink_accept(&remote);
}
static verdict remote_0(void) { return sink_result(&remote, IDLE); }
static verdict remote_1(void) { return sink_result(&remote, UNREAD); }
static verdict remote_2(void) { return sink_result(&remote, CLOSE_WAIT); }
static verdict remote_3(void) { return sink_result(&remote, FIN_WAIT); }
static verdict remote_4(void) { return sink_result(&remote, NEW); }

const struct state peer_states[] = {
	{ "peer_established", remote_setup, remote_0, 0 },
	{ "peer_unread_data", remote_setup, remote_1, 0 },
	{ "peer_close_wait", remote_setup, remote_2, 0 },
	{ "peer_fin_wait2", remote_setup, remote_3, 0 },
	{ "peer_listening", remote_setup, remote_4, 0 },
	{ NULL, NULL, NULL, 0 },
};
