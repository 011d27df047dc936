/* UDP sockets: addresses and options. What is in their queues is not carried,
 * and need not be: datagrams may get lost. */
#define _GNU_SOURCE
#include "sink.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int server, client;
static struct sockaddr_in server_address, client_address;

static struct sockaddr_in name_of(int fd)
{
	struct sockaddr_in a = { 0 };
	socklen_t n = sizeof a;
	MUST(getsockname(fd, (struct sockaddr *)&a, &n));
	return a;
}

static void udp_setup(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int on = 1, size = 50000;
	server = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	client = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	MUST(setsockopt(server, SOL_SOCKET, SO_BROADCAST, &on, sizeof on));
	MUST(setsockopt(server, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
	MUST(bind(server, (struct sockaddr *)&a, sizeof a));
	server_address = name_of(server);
	MUST(connect(client, (struct sockaddr *)&server_address, sizeof a));
	client_address = name_of(client);
}
static verdict udp_check(void)
{
	struct sockaddr_in from, a = name_of(server);
	socklen_t n = sizeof from;
	char buf[16] = "";
	int on = 0, size = 0;
	EXPECT(a.sin_port == server_address.sin_port, "its port is %d, was %d", ntohs(a.sin_port), ntohs(server_address.sin_port));
	n = sizeof on;
	TRY(getsockopt(server, SOL_SOCKET, SO_BROADCAST, &on, &n));
	TRY(getsockopt(server, SOL_SOCKET, SO_RCVBUF, &size, &n));
	EXPECT(on == 1 && size == 100000, "SO_BROADCAST is %d, SO_RCVBUF %d", on, size);
	TRY(send(client, "ping", 4, 0));
	PASS(wait_readable(server));
	n = sizeof from;
	EXPECT(TRY(recvfrom(server, buf, sizeof buf, 0, (struct sockaddr *)&from, &n)) == 4 && strcmp(buf, "ping") == 0, "received \"%s\"", buf);
	EXPECT(from.sin_port == client_address.sin_port, "the client's port is %d, was %d", ntohs(from.sin_port), ntohs(client_address.sin_port));
	TRY(sendto(server, "pong", 4, 0, (struct sockaddr *)&from, n));
	PASS(wait_readable(client));
	EXPECT(TRY(recv(client, buf, sizeof buf, 0)) == 4 && strcmp(buf, "pong") == 0, "received \"%s\"", buf);
	return NULL;
}

const struct state udp_states[] = {
	{ "udp", udp_setup, udp_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
