/* Who a process is and what it may do. */
#define _GNU_SOURCE
#include "sink.h"

#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

/* User and group ids, all different, and supplementary groups. */
static const gid_t extra[] = { 7, 70, 700 };
static void ids_setup(void)
{
	MUST(setgroups(3, extra));
	MUST(setresgid(2001, 2002, 2003));
	MUST(setresuid(1001, 1002, 1003));
	/* A change of user makes a process undumpable, as a set-id program is;
	 * a service that drops its privileges ends up so too. */
}
static verdict ids_check(void)
{
	uid_t r, e, s;
	gid_t groups[8];
	TRY(getresuid(&r, &e, &s));
	EXPECT(r == 1001 && e == 1002 && s == 1003 && setfsuid(-1) == 1002, "uids are %u %u %u %d", r, e, s, setfsuid(-1));
	TRY(getresgid(&r, &e, &s));
	EXPECT(r == 2001 && e == 2002 && s == 2003 && setfsgid(-1) == 2002, "gids are %u %u %u %d", r, e, s, setfsgid(-1));
	int n = TRY(getgroups(8, groups));
	EXPECT(n == 3 && memcmp(groups, extra, sizeof extra) == 0, "it is in %d groups", n);
	return NULL;
}
KID_STATE(ids)

/* Capabilities: an ordinary user that has kept two, one of them ambient. */
#define BIT(capability) (1u << (capability))
static int caps_get(struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	return syscall(SYS_capget, &h, data);
}
static void caps_setup(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { {
		.permitted = BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_CHOWN),
		.effective = BIT(CAP_NET_BIND_SERVICE),
		.inheritable = BIT(CAP_NET_BIND_SERVICE),
	} };
	MUST(prctl(PR_CAPBSET_DROP, CAP_KILL));
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP));
	MUST(setresgid(1000, 1000, 1000));
	MUST(setresuid(1000, 1000, 1000));
	MUST(syscall(SYS_capset, &h, data));
	MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
}
static verdict caps_check(void)
{
	struct __user_cap_data_struct data[2];
	TRY(caps_get(data));
	EXPECT(data[0].permitted == (BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_CHOWN)) && data[1].permitted == 0,
	       "permitted are %x %x", data[0].permitted, data[1].permitted);
	EXPECT(data[0].effective == BIT(CAP_NET_BIND_SERVICE) && data[1].effective == 0, "effective are %x %x", data[0].effective, data[1].effective);
	EXPECT(data[0].inheritable == BIT(CAP_NET_BIND_SERVICE), "inheritable are %x", data[0].inheritable);
	EXPECT(prctl(PR_CAPBSET_READ, CAP_KILL) == 0, "the bounding set has CAP_KILL again");
	EXPECT(prctl(PR_CAPBSET_READ, CAP_CHOWN) == 1, "the bounding set has lost CAP_CHOWN");
	EXPECT(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0) == 1, "the ambient set is empty");
	int bits = TRY(prctl(PR_GET_SECUREBITS));
	EXPECT(bits == (SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP), "securebits are %x", bits);
	return NULL;
}
KID_STATE(caps)

/* Two seccomp filters; the second makes one call fail in an unusual way. */
static void seccomp_add(unsigned nr, unsigned action)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}
static void seccomp_setup(void)
{
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	seccomp_add(SYS_uname, SECCOMP_RET_ERRNO | ENOTNAM);
	seccomp_add(SYS_sysinfo, SECCOMP_RET_ERRNO | EXDEV);
}
static verdict seccomp_check(void)
{
	char buf[1024];
	EXPECT(prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER, "it is not filtered any more");
	EXPECT(syscall(SYS_uname, buf) == -1 && errno == ENOTNAM, "uname: %s", strerror(errno));
	EXPECT(syscall(SYS_sysinfo, buf) == -1 && errno == EXDEV, "sysinfo: %s", strerror(errno));
	return NULL;
}
KID_STATE(seccomp)

const struct state credential_states[] = {
	{ "uids_and_groups", ids_start, ids_ask, NEEDS(CAP_SETUID) },
	{ "capabilities", caps_start, caps_ask, NEEDS(CAP_SETPCAP) },
	{ "seccomp", seccomp_start, seccomp_ask, 0 },
	{ NULL, NULL, NULL, 0 },
};
