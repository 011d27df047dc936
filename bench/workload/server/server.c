// The server that the benchmark moves: a TCP server of a chosen amount of memory, of which it changes
// as much as it is told, in any number of processes. It is static and has no more memory than asked for.
//
// Protocol: the client sends 64-bit numbers, the server answers each with one. Its own counting from 0
// upwards, and the answer is the number times `factor`; a number that is not the next one closes the
// connection. Numbers with the highest bit set are questions:
//	ask_gap    the longest time in nanoseconds that no instruction of the server ran, since the last time it was asked
//	ask_memory the bytes that are resident, of all processes
//	ask_check  1 if all memory is what it should be
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { max_clients = 16, page_words = 512, page_bytes = 4096 };
static const uint64_t factor = 0x9e3779b97f4a7c15;
static const uint64_t ask_gap = 1ULL << 63 | 1, ask_memory = 1ULL << 63 | 2, ask_check = 1ULL << 63 | 3;
// How long the server stays busy, that is ticking and changing memory, after a client's last word: a
// server that is not being measured must not disturb one that is.
static const int64_t busy_ns = 500 * 1000 * 1000;
static const int64_t tick_ns = 200 * 1000;

static void die(const char *what) {
	perror(what);
	exit(1);
}

// now is the time of the machine's clock: the monotonic one of a moved process is another machine's.
static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

// Memory: a page has its version in the first word, and after it pseudo-random words of page number
// and version, so that nothing can be compressed or shared, and everything checked.

static uint64_t *memory;
static uint64_t pages;
static uint64_t first_page; // of this process among those of all

static uint64_t next(uint64_t *state) {
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void fill(uint64_t page, uint64_t version) {
	uint64_t *p = memory + page * page_words, state = (first_page + page + 1) * factor ^ version;
	p[0] = version;
	for (int i = 1; i < page_words; i++) p[i] = next(&state);
}

static int check(void) {
	for (uint64_t page = 0; page < pages; page++) {
		const uint64_t *p = memory + page * page_words;
		uint64_t state = (first_page + page + 1) * factor ^ p[0];
		for (int i = 1; i < page_words; i++)
			if (p[i] != next(&state)) return 0;
	}
	return 1;
}

static uint64_t resident(pid_t pid) {
	char name[64];
	snprintf(name, sizeof name, "/proc/%d/statm", pid);
	FILE *f = fopen(name, "r");
	unsigned long all, here = 0;
	if (f) {
		if (fscanf(f, "%lu %lu", &all, &here) != 2) here = 0;
		fclose(f);
	}
	return here * page_bytes;
}

// dirty changes pages at a rate, in turn.
static void dirty(double bytes_per_second, int64_t elapsed_ns) {
	static double due;
	static uint64_t at, version = 1;
	due += bytes_per_second * elapsed_ns / 1e9 / page_bytes;
	if (due > 2048) due = 2048; // after a pause it does not catch up
	for (; due >= 1 && pages > 0; due--) {
		fill(at, version);
		if (++at == pages) at = 0, version++;
	}
}

struct client {
	int fd;
	uint64_t want;
	size_t have;
	unsigned char word[8];
};

static int64_t longest_gap;
static pid_t *children;
static int n_children;
// Where children say, when they are asked, whether their memory is right.
static volatile struct { int asked, bad, answered; } *shared;

static uint64_t answer(struct client *c, uint64_t word, int *good) {
	if (word == ask_gap) {
		uint64_t gap = longest_gap;
		longest_gap = 0;
		return gap;
	}
	if (word == ask_memory) {
		uint64_t sum = resident(getpid());
		for (int i = 0; i < n_children; i++) sum += resident(children[i]);
		return sum;
	}
	if (word == ask_check) {
		shared->answered = shared->bad = 0;
		__sync_fetch_and_add(&shared->asked, 1);
		int ok = check();
		while (shared->answered < n_children) usleep(1000);
		return ok && !shared->bad;
	}
	*good = word == c->want++;
	return word * factor;
}

// serve answers what a client has sent; 0 means that it is gone.
static int serve(struct client *c) {
	unsigned char in[4096], out[4096 + 8];
	ssize_t n = read(c->fd, in, sizeof in);
	if (n < 0) return errno == EAGAIN || errno == EINTR;
	if (n == 0) return 0;
	size_t ready = 0;
	for (ssize_t i = 0; i < n; i++) {
		c->word[c->have++] = in[i];
		if (c->have < sizeof c->word) continue;
		c->have = 0;
		uint64_t word, reply;
		memcpy(&word, c->word, sizeof word);
		int good = 1;
		reply = answer(c, word, &good);
		if (!good) return 0;
		memcpy(out + ready, &reply, sizeof reply);
		ready += sizeof reply;
	}
	for (size_t sent = 0; sent < ready;) {
		ssize_t m = write(c->fd, out + sent, ready - sent);
		if (m < 0 && errno == EAGAIN) {
			struct pollfd p = {c->fd, POLLOUT, 0};
			poll(&p, 1, -1);
			continue;
		}
		if (m < 0) return errno == EINTR;
		sent += m;
	}
	return 1;
}

static void child(void) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int seen = 0;;) {
		usleep(20 * 1000);
		if (shared->asked == seen) continue;
		seen = shared->asked;
		if (!check()) shared->bad = 1;
		__sync_fetch_and_add(&shared->answered, 1);
	}
}

int main(int argc, char **argv) {
	int port = 7000, option;
	double mebibytes = 1, rate = 0;
	long processes = 1;
	int same = 0, copies = 0; // all processes have all memory: one and the same, or a copy each
	while ((option = getopt(argc, argv, "p:m:d:n:sc")) != -1) switch (option) {
		case 'p': port = atoi(optarg); break;
		case 'm': mebibytes = atof(optarg); break;
		case 'd': rate = atof(optarg) * 1048576; break;
		case 'n': processes = atol(optarg); break;
		case 's': same = 1; break;
		case 'c': copies = 1; break;
		default: return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	// Nothing of where it was started stays open.
	int null = open("/dev/null", O_RDWR);
	for (int fd = 0; null >= 0 && fd <= 2; fd++) dup2(null, fd);
	close_range(3, ~0U, 0);

	pages = mebibytes * 1048576 / page_bytes / (same || copies ? 1 : processes);
	shared = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memory = mmap(NULL, pages * page_bytes + page_bytes, PROT_READ | PROT_WRITE, (same ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	children = calloc(processes, sizeof *children);
	if (shared == MAP_FAILED || memory == MAP_FAILED || !children) die("memory");
	for (uint64_t p = 0; same && p < pages; p++) fill(p, 0);
	for (long i = 1; i < processes; i++) {
		pid_t pid = fork();
		if (pid < 0) die("fork");
		if (pid == 0) {
			if (!same && !copies) first_page = i * pages;
			for (uint64_t p = 0; !same && p < pages; p++) fill(p, 0);
			if (same) check(); // maps it
			__sync_fetch_and_add(&shared->answered, 1);
			child();
		}
		children[n_children++] = pid;
	}
	for (uint64_t p = 0; !same && p < pages; p++) fill(p, 0);
	while (shared->answered < n_children) usleep(1000);

	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) die("listen");

	struct client clients[max_clients];
	int n_clients = 0;
	int64_t last = now(), heard = 0;
	for (;;) {
		struct pollfd fds[1 + max_clients] = {{listener, POLLIN, 0}};
		for (int i = 0; i < n_clients; i++) fds[1 + i] = (struct pollfd){clients[i].fd, POLLIN, 0};
		int busy = last - heard < busy_ns;
		struct timespec tick = {0, tick_ns};
		if (ppoll(fds, 1 + n_clients, busy ? &tick : NULL, NULL) < 0 && errno != EINTR) die("poll");
		int64_t t = now();
		if (busy) {
			if (t - last > longest_gap) longest_gap = t - last;
			dirty(rate, t - last);
		}
		last = t;
		for (int i = n_clients - 1; i >= 0; i--) {
			if (!fds[1 + i].revents) continue;
			heard = t;
			if (serve(&clients[i])) continue;
			close(clients[i].fd);
			clients[i] = clients[--n_clients];
		}
		if (fds[0].revents) {
			int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
			if (fd >= 0 && n_clients < max_clients) {
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				clients[n_clients++] = (struct client){.fd = fd};
			} else if (fd >= 0) close(fd);
		}
	}
}
