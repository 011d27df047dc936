/* Processes: the tree, groups and sessions, what they inherit. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int sleep_forever(void)
{
	for (;;)
		pause();
	return 0;
}

/* The program's own identity. */
static pid_t own[4];
static void identity_get(pid_t ids[4])
{
	ids[0] = getpid();
	ids[1] = getppid();
	ids[2] = getpgid(0);
	ids[3] = getsid(0);
}
static void identity_setup(void) { identity_get(own); }
static verdict identity_check(void)
{
	pid_t ids[4];
	identity_get(ids);
	for (int i = 0; i < 4; i++)
		EXPECT(ids[i] == own[i], "%s is %d, was %d", (const char *[]){ "pid", "parent", "process group", "session" }[i], ids[i], own[i]);
	return NULL;
}

/* Zombies: one that exited, one that was killed. */
static pid_t exited, killed;
static int exit_42(void) { return 42; }
static void zombie_setup(void)
{
	siginfo_t info;
	exited = spawn(exit_42);
	killed = spawn(sleep_forever);
	MUST(kill(killed, SIGKILL));
	MUST(waitid(P_PID, exited, &info, WEXITED | WNOWAIT));
	MUST(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
}
static verdict zombie_check(void)
{
	int status;
	TRY(waitpid(exited, &status, WNOHANG));
	EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 42, "exit status is %x, was 42", status);
	TRY(waitpid(killed, &status, WNOHANG));
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status of the killed one is %x", status);
	return NULL;
}

/* A stopped child. */
static pid_t stopped;
static void stopped_setup(void)
{
	int status;
	stopped = spawn(sleep_forever);
	MUST(kill(stopped, SIGSTOP));
	MUST(waitpid(stopped, &status, WUNTRACED));
}
static verdict stopped_check(void)
{
	char name[64], line[256], state = 0;
	snprintf(name, sizeof name, "/proc/%d/stat", stopped);
	FILE *f = fopen(name, "re");
	EXPECT(f, "%s: %s", name, strerror(errno));
	if (fgets(line, sizeof line, f))
		state = strrchr(line, ')')[2];
	fclose(f);
	EXPECT(state == 'T', "it is in state %c", state);
	int status;
	TRY(kill(stopped, SIGCONT));
	TRY(waitpid(stopped, &status, WCONTINUED));
	EXPECT(WIFCONTINUED(status), "status after SIGCONT is %x", status);
	return NULL;
}

/* A session with two process groups, the second one's leader gone. */
static pid_t left_behind, group;
static void session_setup(void)
{
	int status, ends[2];
	MUST(setsid());
	/* The kid adopts what its children leave behind, so that it can find it. */
	MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
	MUST(pipe2(ends, O_CLOEXEC));
	group = MUST(fork());
	if (group == 0) {
		MUST(setpgid(0, 0));
		left_behind = MUST(fork());
		if (left_behind == 0)
			sleep_forever();
		MUST(write(ends[1], &left_behind, sizeof left_behind));
		_exit(0);
	}
	if (MUST(read(ends[0], &left_behind, sizeof left_behind)) != sizeof left_behind)
		die("no group member");
	MUST(waitpid(group, &status, 0));
	close(ends[0]);
	close(ends[1]);
}
static verdict session_check(void)
{
	EXPECT(getsid(0) == getpid() && getpgid(0) == getpid(), "it leads session %d, group %d", getsid(0), getpgid(0));
	EXPECT(getpgid(left_behind) == group, "member is in group %d, was in %d", getpgid(left_behind), group);
	EXPECT(getsid(left_behind) == getpid(), "member is in session %d", getsid(left_behind));
	int on = 0;
	TRY(prctl(PR_GET_CHILD_SUBREAPER, &on));
	EXPECT(on == 1, "it is no subreaper any more");
	TRY(kill(-group, SIGKILL));
	TRY(waitpid(left_behind, NULL, 0));
	return NULL;
}
KID_STATE(session)

/* An orphan, adopted by whoever adopts here. */
static struct kid orphan_kid;
static pid_t orphan_parent;
static void orphan_setup(void)
{
	struct timespec step = { .tv_nsec = 1000 * 1000 };
	pid_t parent = getpid();
	if (MUST(fork()) != 0)
		_exit(0); /* the setup goes on in the child of the kid */
	while (getppid() == parent)
		nanosleep(&step, NULL);
	orphan_parent = getppid();
}
static verdict orphan_check(void)
{
	EXPECT(getppid() == orphan_parent, "its parent is %d, was %d", getppid(), orphan_parent);
	return NULL;
}
static void orphan_start(void)
{
	kid_start(&orphan_kid, orphan_setup, orphan_check);
	MUST(waitpid(orphan_kid.pid, NULL, 0));
}
static verdict orphan_ask(void) { return kid_check(&orphan_kid); }

/* Scheduling. The tests may be run with a nice value of their own. */
static int niceness;
static void nice_setup(void)
{
	struct sched_param p = { 0 };
	MUST(sched_setscheduler(0, SCHED_BATCH, &p));
	errno = 0;
	niceness = nice(7);
	if (niceness == -1 && errno)
		die("nice: %s", strerror(errno));
}
static verdict nice_check(void)
{
	EXPECT(getpriority(PRIO_PROCESS, 0) == niceness, "nice value is %d, was %d", getpriority(PRIO_PROCESS, 0), niceness);
	EXPECT(sched_getscheduler(0) == SCHED_BATCH, "scheduling policy is %d, was SCHED_BATCH", sched_getscheduler(0));
	return NULL;
}
KID_STATE(nice)

static void umask_setup(void) { umask(0137); }
static verdict umask_check(void)
{
	mode_t old = umask(0);
	EXPECT(old == 0137, "umask is %o, was 137", old);
	return NULL;
}
KID_STATE(umask)

static void rlimit_setup(void)
{
	struct rlimit files = { 1234, 2345 }, core = { 0, 4096 };
	MUST(setrlimit(RLIMIT_NOFILE, &files));
	MUST(setrlimit(RLIMIT_CORE, &core));
}
static verdict rlimit_check(void)
{
	struct rlimit r;
	TRY(getrlimit(RLIMIT_NOFILE, &r));
	EXPECT(r.rlim_cur == 1234 && r.rlim_max == 2345, "descriptors: %lu, %lu", r.rlim_cur, r.rlim_max);
	TRY(getrlimit(RLIMIT_CORE, &r));
	EXPECT(r.rlim_cur == 0 && r.rlim_max == 4096, "core: %lu, %lu", r.rlim_cur, r.rlim_max);
	return NULL;
}
KID_STATE(rlimit)

static void prctl_setup(void)
{
	MUST(prctl(PR_SET_NAME, "sink of names"));
	MUST(prctl(PR_SET_PDEATHSIG, SIGTERM));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
}
static verdict prctl_check(void)
{
	char name[17] = "";
	int sig = 0;
	TRY(prctl(PR_GET_NAME, name));
	EXPECT(strcmp(name, "sink of names") == 0, "name is \"%s\"", name);
	TRY(prctl(PR_GET_PDEATHSIG, &sig));
	EXPECT(sig == SIGTERM, "parent death signal is %d", sig);
	EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs is gone");
	EXPECT(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1, "thp_disable is gone");
	return NULL;
}
KID_STATE(prctl)

/* Directories: one of its own, a deleted one, another root. */
static void cwd_setup(void)
{
	MUST(mkdir(path("cwd"), 0755));
	MUST(chdir(path("cwd")));
}
static verdict cwd_check(void)
{
	char buf[4096];
	EXPECT(getcwd(buf, sizeof buf), "getcwd: %s", strerror(errno));
	EXPECT(strcmp(buf, path("cwd")) == 0, "working directory is %s", buf);
	close(TRY(open("made-after", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600)));
	TRY(access(path("cwd/made-after"), F_OK));
	return NULL;
}
KID_STATE(cwd)

static void cwd_deleted_setup(void)
{
	MUST(mkdir(path("cwd-deleted"), 0755));
	MUST(chdir(path("cwd-deleted")));
	MUST(rmdir(path("cwd-deleted")));
}
static verdict cwd_deleted_check(void)
{
	char buf[4096];
	struct stat st;
	EXPECT(!getcwd(buf, sizeof buf) && errno == ENOENT, "working directory is %s", buf);
	TRY(stat(".", &st));
	EXPECT(st.st_nlink == 0, "working directory has %lu links", (unsigned long)st.st_nlink);
	return NULL;
}
KID_STATE(cwd_deleted)

static void chroot_setup(void)
{
	MUST(mkdir(path("jail"), 0755));
	MUST(mkdir(path("jail/inside"), 0755));
	close(make_file("jail/marker", 100, 11));
	MUST(chroot(path("jail")));
	MUST(chdir("/inside"));
}
static verdict chroot_check(void)
{
	char buf[4096];
	EXPECT(getcwd(buf, sizeof buf) && strcmp(buf, "/inside") == 0, "working directory is %s", buf);
	int fd = TRY(open("/marker", O_RDONLY | O_CLOEXEC));
	PASS(read_filled(fd, 100, 11));
	close(fd);
	EXPECT(access("/proc/self", F_OK) == -1, "it sees the old root");
	return NULL;
}
KID_STATE(chroot)

const struct state process_states[] = {
	{ "identity", identity_setup, identity_check, 0 },
	{ "zombies", zombie_setup, zombie_check, 0 },
	{ "stopped_child", stopped_setup, stopped_check, 0 },
	{ "process_groups_and_session", session_start, session_ask, 0 },
	{ "orphan", orphan_start, orphan_ask, 0 },
	{ "nice", nice_start, nice_ask, 0 },
	{ "umask", umask_start, umask_ask, 0 },
	{ "rlimits", rlimit_start, rlimit_ask, 0 },
	{ "prctl", prctl_start, prctl_ask, 0 },
	{ "cwd", cwd_start, cwd_ask, 0 },
	{ "cwd_deleted", cwd_deleted_start, cwd_deleted_ask, 0 },
	{ "chroot", chroot_start, chroot_ask, NEEDS(CAP_SYS_CHROOT) },
	{ NULL, NULL, NULL, 0 },
};
