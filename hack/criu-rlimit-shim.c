/*
 * A development aid: lets CRIU read the resource limits of other users' processes on a machine
 * whose root lacks CAP_SYS_RESOURCE (many containers and CI runners).
 *
 * CRIU asks for each limit with syscall(SYS_prlimit64, pid, resource, NULL, &old), which the
 * kernel refuses there for a task with another uid ("Can't get rlimit 0"). The same numbers
 * stand in /proc/PID/limits, so on EPERM they are read from that file. Nothing else is changed:
 * a limit is never set here, and every other system call passes through untouched.
 *
 * hack/criu.sh links the result to its private criu binary only, where the capability is missing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* Row titles of /proc/PID/limits by resource number, from lnames[] in the kernel's fs/proc/base.c. */
static const char *const titles[RLIM_NLIMITS] = {
	[RLIMIT_CPU] = "Max cpu time",
	[RLIMIT_FSIZE] = "Max file size",
	[RLIMIT_DATA] = "Max data size",
	[RLIMIT_STACK] = "Max stack size",
	[RLIMIT_CORE] = "Max core file size",
	[RLIMIT_RSS] = "Max resident set",
	[RLIMIT_NPROC] = "Max processes",
	[RLIMIT_NOFILE] = "Max open files",
	[RLIMIT_MEMLOCK] = "Max locked memory",
	[RLIMIT_AS] = "Max address space",
	[RLIMIT_LOCKS] = "Max file locks",
	[RLIMIT_SIGPENDING] = "Max pending signals",
	[RLIMIT_MSGQUEUE] = "Max msgqueue size",
	[RLIMIT_NICE] = "Max nice priority",
	[RLIMIT_RTPRIO] = "Max realtime priority",
	[RLIMIT_RTTIME] = "Max realtime timeout",
};

static long (*next_syscall)(long, ...);

__attribute__((constructor)) static void resolve(void)
{
	next_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	if (!next_syscall)
		abort();
}

/* Reads one column of a row: "unlimited" or a decimal number, after any blanks. */
static rlim_t limit_value(char **s)
{
	*s += strspn(*s, " ");
	if (!strncmp(*s, "unlimited", 9)) {
		*s += 9;
		return RLIM_INFINITY;
	}
	return strtoull(*s, s, 10);
}

/*
 * The limits of the process that was asked about last. CRIU asks for one after the other, and the
 * kernel writes all of them for each read.
 */
static int known_pid;
static struct rlimit known[RLIM_NLIMITS];
static char is_known[RLIM_NLIMITS];

static void read_limits(int pid)
{
	char path[32], line[256];
	FILE *f;

	known_pid = pid;
	memset(is_known, 0, sizeof(is_known));
	snprintf(path, sizeof(path), "/proc/%d/limits", pid);
	f = fopen(path, "re");
	if (!f)
		return;
	while (fgets(line, sizeof(line), f)) {
		for (int i = 0; i < RLIM_NLIMITS; i++) {
			size_t n = titles[i] ? strlen(titles[i]) : 0;
			char *s = line + n;

			if (!n || strncmp(line, titles[i], n) || *s != ' ')
				continue;
			known[i].rlim_cur = limit_value(&s);
			known[i].rlim_max = limit_value(&s);
			is_known[i] = 1;
			break;
		}
	}
	fclose(f);
}

/*
 * Fills old from /proc/PID/limits. Returns 0, or -1 where the file or the row cannot be had. What was
 * read once answers one question about each limit: a second one may be about what it is by then.
 */
static int limit_from_proc(int pid, unsigned int resource, struct rlimit *old)
{
	if (resource >= RLIM_NLIMITS)
		return -1;
	if (pid != known_pid || !is_known[resource])
		read_limits(pid);
	if (!is_known[resource])
		return -1;
	*old = known[resource];
	is_known[resource] = 0;
	return 0;
}

long syscall(long number, ...)
{
	long a[6], ret;
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);

	ret = next_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_prlimit64 && ret == -1 && errno == EPERM && !a[2] && a[3]) {
		if (limit_from_proc((int)a[0], (unsigned int)a[1], (struct rlimit *)a[3]) == 0)
			return 0;
		errno = EPERM;
	}
	return ret;
}
