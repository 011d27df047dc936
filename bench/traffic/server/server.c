/*
 * server is the far end of the benchmark of the data path:
 *
 *	server [PORT [ADDRESS]]
 *
 * It listens on PORT and the four ports after it, 7100 if none is given, of all
 * addresses or of one:
 *	PORT    TCP  sends back what comes
 *	PORT+1  TCP  counts the bytes that come and says at their end how many
 *	             (8 bytes, big endian)
 *	PORT+2  TCP  sends zeros until the client closes
 *	PORT+3  TCP  reads a byte, answers with it, and closes
 *	PORT+4  UDP  counts datagrams; one of a single byte is answered with how
 *	             many others came since the last of those (8 bytes, big endian)
 *
 * It is C and blocks in the kernel, so that what is measured is the way to it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, STACK = 512 << 10 };

static void die(const char *what)
{
	fprintf(stderr, "server: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct in_addr own = { .s_addr = INADDR_ANY };

static int open_port(int type, int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = own };
	int one = 1, s = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (s < 0)
		die("socket");
	if (setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0)
		die("SO_REUSEADDR");
	if (bind(s, (struct sockaddr *)&address, sizeof address) < 0)
		die("bind");
	if (type == SOCK_STREAM && listen(s, 4096) < 0)
		die("listen");
	return s;
}

static int write_all(int s, const void *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(s, data, size);
		if (n <= 0)
			return -1;
		data = (const char *)data + n;
		size -= n;
	}
	return 0;
}

static void *echo(void *arg)
{
	char buffer[4096];
	int s = (intptr_t)arg, one = 1;
	ssize_t n;

	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	while ((n = read(s, buffer, sizeof buffer)) > 0 && write_all(s, buffer, n) == 0)
		;
	close(s);
	return NULL;
}

static void *sink(void *arg)
{
	static __thread char buffer[BUFFER];
	uint64_t total = 0;
	int s = (intptr_t)arg;
	ssize_t n;

	while ((n = read(s, buffer, sizeof buffer)) > 0)
		total += n;
	total = htobe64(total);
	write_all(s, &total, sizeof total);
	close(s);
	return NULL;
}

static void *source(void *arg)
{
	static const char zeros[BUFFER];
	int s = (intptr_t)arg;

	while (write_all(s, zeros, sizeof zeros) == 0)
		;
	close(s);
	return NULL;
}

struct port {
	int listener;
	void *(*serve)(void *);
};

/* accept_all gives each connection to a thread of its own. */
static void *accept_all(void *arg)
{
	struct port *port = arg;
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int s = accept4(port->listener, NULL, NULL, SOCK_CLOEXEC);
		if (s < 0)
			continue;
		if (pthread_create(&thread, &attributes, port->serve, (void *)(intptr_t)s) != 0)
			close(s);
	}
	return NULL;
}

/* answer_one serves a connection after the other. */
static void *answer_one(void *arg)
{
	int listener = (intptr_t)arg;
	char byte;

	for (;;) {
		int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (s < 0)
			continue;
		if (read(s, &byte, 1) == 1)
			write_all(s, &byte, 1);
		close(s);
	}
	return NULL;
}

static void count(int s)
{
	char buffer[2048];
	uint64_t total = 0;
	struct sockaddr_in from;

	for (;;) {
		socklen_t size = sizeof from;
		ssize_t n = recvfrom(s, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &size);
		if (n != 1) {
			total += n > 1;
			continue;
		}
		total = htobe64(total);
		sendto(s, &total, sizeof total, 0, (struct sockaddr *)&from, size);
		total = 0;
	}
}

int main(int argc, char **argv)
{
	int port = argc > 1 ? atoi(argv[1]) : 7100;
	static struct port ports[3] = {{.serve = echo}, {.serve = sink}, {.serve = source}};
	pthread_t thread;
	int datagrams, size = 4 << 20;

	if (argc > 2 && !inet_aton(argv[2], &own)) {
		fprintf(stderr, "server: no address: %s\n", argv[2]);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	datagrams = open_port(SOCK_DGRAM, port + 4);
	setsockopt(datagrams, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	for (int i = 0; i < 3; i++) {
		ports[i].listener = open_port(SOCK_STREAM, port + i);
		if (pthread_create(&thread, NULL, accept_all, &ports[i]) != 0)
			die("pthread_create");
	}
	if (pthread_create(&thread, NULL, answer_one, (void *)(intptr_t)open_port(SOCK_STREAM, port + 3)) != 0)
		die("pthread_create");
	count(datagrams);
}
