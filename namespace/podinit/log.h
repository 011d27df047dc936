/*
 * Part of podinit.c, which includes it: the logs, the exit status, and how this process ends.
 */

static void path_in_dir(char path[static 256], const char *format, const char *name, long long n)
{
	int len = snprintf(path, 256, "%s/", opt.dir);
	if (len < 256)
		snprintf(path + len, 256 - len, format, name, n);
}

static void open_segment(struct output *o, off_t base)
{
	char path[256];

	if (o->file >= 0)
		close(o->file);
	path_in_dir(path, "%s.%lld", o->log, base);
	o->file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	o->base = base;
	o->size = 0;
	if (base >= LOG_SEGMENTS * opt.segment) {
		path_in_dir(path, "%s.%lld", o->log, base - LOG_SEGMENTS * opt.segment);
		unlink(path);
	}
}

/* write_log drops what can't be stored: a full disk must not stop the command. */
static void write_log(struct output *o, const char *data, size_t len)
{
	while (len > 0 && o->file >= 0) {
		size_t room = opt.segment - o->size;
		ssize_t n = write(o->file, data, len < room ? len : room);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		o->size += n;
		data += n;
		len -= n;
		if (o->size >= opt.segment)
			open_segment(o, o->base + opt.segment);
	}
}

/* finish records how the main command ended and ends the pod. */
static void __attribute__((noreturn)) finish(int code)
{
	char temporary[256], path[256];

	path_in_dir(temporary, "%s", "exit.tmp", 0);
	path_in_dir(path, "%s", "exit", 0);
	unlink(temporary);
	int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0) {
		dprintf(fd, "%d\n", code);
		close(fd);
		rename(temporary, path);
	}
	_exit(code);
}

/* leave_session ends the keeper of a session. */
static void __attribute__((noreturn)) leave_session(void)
{
	char path[256];

	path_in_dir(path, "session-%s.sock", opt.id, 0);
	unlink(path);
	_exit(0);
}

/*
 * fail ends this process because of its own trouble. The user finds why where
 * the errors of the command would be.
 */
static void __attribute__((noreturn)) fail(const char *what)
{
	char text[512];
	int len = snprintf(text, sizeof text, "rpodinit: %s: %s\n", what, strerror(errno));

	if (len >= (int)sizeof text)
		len = sizeof text - 1;
	if (opt.id) {
		send(clients[0].fd, text, len, MSG_NOSIGNAL);
		send(clients[0].fd, "x125", 4, MSG_NOSIGNAL);
		leave_session();
	}
	write_log(&outputs[opt.tty ? 0 : 1], text + 1, len - 1);
	finish(EXIT_SETUP);
}
