/* Pseudo-terminals: one with input and output under way, and one that controls
 * a session with a job in the foreground and one in the background. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static int open_master(char *name, size_t size)
{
	int fd = MUST(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
	MUST(grantpt(fd));
	MUST(unlockpt(fd));
	if (ptsname_r(fd, name, size))
		die("ptsname: %s", strerror(errno));
	return fd;
}

static int master, slave;
static char slave_name[64];
static void pty_setup(void)
{
	struct termios t;
	master = open_master(slave_name, sizeof slave_name);
	slave = MUST(open(slave_name, O_RDWR | O_NOCTTY | O_CLOEXEC));
	MUST(tcgetattr(slave, &t));
	cfmakeraw(&t);
	t.c_iflag |= ICRNL;
	t.c_cc[VMIN] = 3;
	t.c_cc[VTIME] = 7;
	cfsetspeed(&t, B38400);
	MUST(tcsetattr(slave, TCSANOW, &t));
	MUST(ioctl(master, TIOCSWINSZ, &(struct winsize){ 33, 77, 330, 770 }));
	MUST(write(master, "typed\r", 6));
	MUST(write(slave, "printed\n", 8));
}
static verdict line(int fd, const char *want)
{
	char buf[64] = "";
	size_t have = 0;
	while (have < strlen(want)) {
		PASS(wait_readable(fd));
		have += TRY(read(fd, buf + have, sizeof buf - 1 - have));
	}
	EXPECT(strcmp(buf, want) == 0, "read \"%s\", expected \"%s\"", buf, want);
	return NULL;
}
static verdict pty_check(void)
{
	struct termios t;
	struct winsize w;
	char name[64] = "";
	TRY(tcgetattr(slave, &t));
	EXPECT(t.c_cc[VMIN] == 3 && t.c_cc[VTIME] == 7 && !(t.c_lflag & (ICANON | ECHO)) && (t.c_iflag & ICRNL), "the settings are others");
	TRY(ioctl(slave, TIOCGWINSZ, &w));
	EXPECT(w.ws_row == 33 && w.ws_col == 77 && w.ws_xpixel == 330, "the window is %dx%d", w.ws_col, w.ws_row);
	EXPECT(ptsname_r(master, name, sizeof name) == 0 && strcmp(name, slave_name) == 0, "its name is %s, was %s", name, slave_name);
	PASS(line(slave, "typed\n"));
	PASS(line(master, "printed\n"));
	TRY(write(master, "again", 5));
	return line(slave, "again");
}

/* The kid leads a session on a terminal of its own, whose master it holds. */
static int terminal, terminal_master;
static pid_t foreground, background;
static pid_t job(void)
{
	pid_t pid = MUST(fork());
	if (pid == 0) {
		setpgid(0, 0);
		signal(SIGINT, SIG_DFL);
		for (;;)
			pause();
	}
	MUST(setpgid(pid, pid));
	return pid;
}
static void control_setup(void)
{
	char name[64];
	MUST(setsid());
	signal(SIGTTOU, SIG_IGN);
	terminal_master = open_master(name, sizeof name);
	terminal = MUST(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
	MUST(ioctl(terminal, TIOCSCTTY, 0));
	foreground = job();
	background = job();
	MUST(tcsetpgrp(terminal, foreground));
}
static verdict control_check(void)
{
	int status;
	EXPECT(tcgetsid(terminal) == getpid(), "the terminal is of session %d", tcgetsid(terminal));
	EXPECT(tcgetpgrp(terminal) == foreground, "group %d is in the foreground, was %d", tcgetpgrp(terminal), foreground);
	int fd = TRY(open("/dev/tty", O_RDWR | O_CLOEXEC));
	close(fd);
	TRY(write(terminal_master, "\003", 1)); /* Ctrl-C, for the foreground only */
	TRY(waitpid(foreground, &status, 0));
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "Ctrl-C had the effect %x", status);
	EXPECT(waitpid(background, &status, WNOHANG) == 0, "the job in the background is gone");
	TRY(kill(background, SIGKILL));
	TRY(waitpid(background, NULL, 0));
	return NULL;
}
KID_STATE(control)

const struct state tty_states[] = {
	{ "pty", pty_setup, pty_check, 0 },
	{ "controlling_terminal", control_start, control_ask, 0 },
	{ NULL, NULL, NULL, 0 },
};
