/*
 * confine puts this process, and so everything in the pod, under the system
 * call filter that podd has sent: a program for the kernel as it stands. To
 * compile one takes 15 ms of every start where the container's runtime does it.
 * Loading it takes CAP_SYS_ADMIN, which no pod has: it is given to this process
 * for this alone, and dropped before anything else is done.
 */
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static void confine(int fd)
{
	const size_t size = BPF_MAXINSNS * sizeof(struct sock_filter);
	/* Not on the stack or heap: what was touched there would be carried when the pod moves. */
	char *program = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t len = 0;
	ssize_t n;

	if (program == MAP_FAILED)
		fail("making room for the system call filter");
	while ((n = read(fd, program + len, size - len)) > 0)
		len += n;
	if (n < 0 || len == 0 || len % sizeof(struct sock_filter) != 0)
		fail("reading the system call filter");
	close(fd);
	struct sock_fprog filter = { .len = len / sizeof(struct sock_filter), .filter = (struct sock_filter *)program };
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) < 0)
		fail("loading the system call filter");
	munmap(program, size);

	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3];
	const unsigned admin = CAP_TO_MASK(CAP_SYS_ADMIN);

	if (prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) < 0 || syscall(SYS_capget, &header, caps) < 0)
		fail("dropping CAP_SYS_ADMIN");
	caps[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective &= ~admin;
	caps[CAP_TO_INDEX(CAP_SYS_ADMIN)].permitted &= ~admin;
	caps[CAP_TO_INDEX(CAP_SYS_ADMIN)].inheritable &= ~admin;
	if (syscall(SYS_capset, &header, caps) < 0)
		fail("dropping CAP_SYS_ADMIN");
}
