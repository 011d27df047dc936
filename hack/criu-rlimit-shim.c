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

/* Fills old from /proc/PID/limits. Returns 0, or -1 where the file or the row cannot be had. */
static int limit_from_proc(int pid, unsigned int resource, struct rlimit *old)
{
	char path[32], line[256];
	int found = -1;
	FILE *f;

	if (resource >= RLIM_NLIMITS || !titles[resource])
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/limits", pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		size_t n = strlen(titles[resource]);
		char *s = line + n;

		if (strncmp(line, titles[resource], n) || *s != ' ')
			continue;
		old->rlim_cur = limit_value(&s);
		old->rlim_max = limit_value(&s);
		found = 0;
		break;
	}
	fclose(f);
	return found;
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
