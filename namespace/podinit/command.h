/*
 * Part of podinit.c, which includes it: starting the command, and its signals.
 */

static void make_pipe(int ends[2], int ours)
{
	if (pipe2(ends, O_CLOEXEC) < 0)
		fail("creating a pipe");
	/* The command may open it again by the name of /dev/stdout: it must own it. */
	if (fchown(ends[0], opt.uid, opt.gid) < 0)
		fail("giving a pipe to the user");
	fcntl(ends[ours], F_SETFL, O_NONBLOCK);
}

static int open_terminal(void)
{
	int unlock = 0;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (master < 0)
		fail("opening /dev/ptmx");
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		fail("unlocking a terminal");
	int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		fail("opening a terminal");
	if (fchown(slave, opt.uid, -1) < 0)
		fail("giving the terminal to the user");
	ioctl(master, TIOCSWINSZ, &opt.window);
	input = master;
	outputs[0].fd = master;
	return slave;
}

static void __attribute__((noreturn)) cant_execute(const char *what)
{
	int err = errno;

	dprintf(2, "podinit: %s: %s\n", what, strerror(err));
	_exit(err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANT_EXECUTE);
}

/* execute becomes the command, in the child. */
static void __attribute__((noreturn)) execute(int in, int out, int err, int started[2])
{
	sigset_t none;

	setsid();
	if (opt.tty)
		ioctl(in, TIOCSCTTY, 0);
	close(started[0]);
	close(started[1]);
	/* None of the three is below 3: podinit keeps /dev/null there. */
	dup2(in, 0);
	dup2(out, 1);
	dup2(err, 2);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(022);
	if (setgroups(opt.ngroups, opt.groups) < 0 || setresgid(opt.gid, opt.gid, opt.gid) < 0 ||
	    setresuid(opt.uid, opt.uid, opt.uid) < 0)
		cant_execute("changing to the user");
	if (chdir(opt.cwd) < 0) {
		dprintf(2, "podinit: working directory %s: %s\n", opt.cwd, strerror(errno));
		_exit(EXIT_CANT_EXECUTE);
	}
	execvp(opt.command[0], opt.command);
	cant_execute(opt.command[0]);
}

static void start_command(void)
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, started[2];
	char none;

	if (opt.tty) {
		in[0] = out[1] = err[1] = open_terminal();
	} else {
		make_pipe(out, 0);
		make_pipe(err, 0);
		outputs[0].fd = out[0];
		outputs[1].fd = err[0];
		if (opt.stdin) {
			make_pipe(in, 1);
			input = in[1];
		} else if ((in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
			fail("opening /dev/null");
		}
	}
	if (pipe2(started, O_CLOEXEC) < 0 || (command = fork()) < 0)
		fail("starting the command");
	if (command == 0)
		execute(in[0], out[1], err[1], started);
	/* From here on it can be signalled as a group. */
	close(started[1]);
	if (read(started[0], &none, 1) != 0)
		fail("starting the command");
	close(started[0]);
	close(in[0]);
	if (!opt.tty) {
		close(out[1]);
		close(err[1]);
	}
}

static void block_signals(void)
{
	/* The effects of podinit's own doing are not passed on. SIGPIPE, if blocked, would not be ignored. */
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPIPE };
	sigset_t set;

	sigfillset(&set);
	for (size_t i = 0; i < sizeof own / sizeof *own; i++)
		sigdelset(&set, own[i]);
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_SETMASK, &set, NULL);
	signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (signals < 0)
		fail("creating a signalfd");
}

static void take_signals(void)
{
	struct signalfd_siginfo info;
	int ended;
	pid_t pid;

	while (read(signals, &info, sizeof info) == sizeof info)
		if (info.ssi_signo != SIGCHLD && status < 0)
			kill(command, info.ssi_signo);
	while ((pid = waitpid(-1, &ended, WNOHANG)) > 0)
		if (pid == command)
			status = WIFSIGNALED(ended) ? 128 + WTERMSIG(ended) : WEXITSTATUS(ended);
}
