/*
 * Part of podinit.c, which includes it: the sockets and the packets on them.
 */

static bool acknowledge(struct client *c)
{
	char text[32];

	if (c->accepted != c->acknowledged) {
		int n = snprintf(text, sizeof text, "a%lu", c->accepted);
		if (send(c->fd, text, n, MSG_NOSIGNAL) < 0 && errno == EAGAIN)
			return false;
		c->acknowledged = c->accepted;
	}
	return true;
}

static void drop(struct client *c)
{
	acknowledge(c); /* transmit leaves room for it */
	close(c->fd);
	c->fd = -1;
}

/* crowded reports whether c has so much to read that only a last acknowledgement may still be sent. */
static bool crowded(const struct client *c)
{
	int queued = 0, limit = 0;
	socklen_t len = sizeof limit;

	ioctl(c->fd, SIOCOUTQ, &queued);
	getsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &limit, &len);
	return queued > limit / 2;
}

static void listen_at(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char path[256];

	path_in_dir(path, "%s.sock", name, 0);
	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		fail("making the socket");
	}
	strcpy(address.sun_path, path);
	unlink(path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	mode_t before = umask(0177);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16) < 0)
		fail("making the socket");
	umask(before);
}

static void accept_client(void)
{
	struct ucred peer;
	socklen_t len = sizeof peer;
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != 0) {
		close(fd);
		return;
	}
	/* A session has one client; a new one takes the place of the old. */
	if (opt.id && clients[0].fd >= 0)
		drop(&clients[0]);
	for (struct client *c = clients; c < clients + (opt.id ? 1 : MAX_CLIENTS); c++)
		if (c->fd < 0) {
			*c = (struct client){ .fd = fd };
			return;
		}
	close(fd);
}

static void start_session(struct client *c, char *request, size_t len)
{
	pid_t pid = fork();

	if (pid == 0)
		run_session(c->fd, request, len);
	if (pid < 0) {
		char text[128];
		int n = snprintf(text, sizeof text, "rpodinit: starting a session: %s\n", strerror(errno));
		send(c->fd, text, n, MSG_NOSIGNAL);
		send(c->fd, "x125", 4, MSG_NOSIGNAL);
	}
	drop(c);
}

static bool room_for_input(void)
{
	return sizeof pending_input - pending_input_len >= MAX_DATA;
}

static void receive(struct client *c)
{
	static char buf[1 + MAX_REQUEST + 1];
	struct winsize window = { 0 };
	ssize_t n = recv(c->fd, buf, sizeof buf - 1, MSG_TRUNC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0 || n > 1 + MAX_REQUEST) {
		drop(c);
		return;
	}
	buf[n] = '\0';
	switch (buf[0]) {
	case 's':
		if (!opt.id)
			start_session(c, buf + 1, n - 1);
		break;
	case 'i':
		if ((size_t)n - 1 > sizeof pending_input - pending_input_len) {
			drop(c); /* it was told to send no more than MAX_DATA at once */
			break;
		}
		if (input >= 0 && !end_of_input) {
			memcpy(pending_input + pending_input_len, buf + 1, n - 1);
			pending_input_len += n - 1;
		}
		c->accepted += n - 1;
		break;
	case 'e':
		end_of_input = true;
		break;
	case 'w':
		if (opt.tty && sscanf(buf + 1, "%hu %hu", &window.ws_row, &window.ws_col) == 2)
			ioctl(input, TIOCSWINSZ, &window);
		break;
	case 'h':
		if (opt.id && status < 0)
			kill(-command, SIGHUP);
		break;
	}
}

/* transmit sends c what waits for it. It returns false if c must read first. */
static bool transmit(struct client *c)
{
	if (crowded(c))
		return false;
	if (packet_len > 0) {
		if (send(c->fd, packet, packet_len, MSG_NOSIGNAL) < 0) {
			if (errno == EAGAIN)
				return false;
			drop(c); /* the packet is for the next one */
			return true;
		}
		packet_len = 0;
		if (last_packet)
			leave_session();
	}
	return acknowledge(c);
}
