/* Signals: pending, blocked, handled, ignored. */
#define _GNU_SOURCE
#include "sink.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

/* Pending for the process: a plain one, and real-time ones in a queue, whose
 * order and values matter. */
static void pending_setup(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	for (int i = 0; i < 3; i++)
		sigaddset(&set, SIGRTMIN + i);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(kill(getpid(), SIGUSR2));
	for (int i = 0; i < 5; i++)
		MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = 100 + i }));
	MUST(sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = 99 }));
}
static verdict take(int sig, int code, int value)
{
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	int got = TRY(sigtimedwait(&set, &info, &(struct timespec){ 0 }));
	EXPECT(got == sig && info.si_code == code, "signal %d with code %d, was %d with %d", got, info.si_code, sig, code);
	EXPECT(info.si_pid == getpid() && info.si_uid == getuid(), "signal %d is from process %d of user %u", sig, info.si_pid, info.si_uid);
	EXPECT(code != SI_QUEUE || info.si_value.sival_int == value, "signal %d has value %d, was %d", sig, info.si_value.sival_int, value);
	return NULL;
}
static verdict pending_check(void)
{
	sigset_t set;
	TRY(sigpending(&set));
	EXPECT(sigismember(&set, SIGUSR2) && sigismember(&set, SIGRTMIN) && sigismember(&set, SIGRTMIN + 1), "some are not pending");
	EXPECT(!sigismember(&set, SIGRTMIN + 2), "one too many is pending");
	PASS(take(SIGUSR2, SI_USER, 0));
	PASS(take(SIGRTMIN, SI_QUEUE, 99));
	for (int i = 0; i < 5; i++)
		PASS(take(SIGRTMIN + 1, SI_QUEUE, 100 + i));
	TRY(sigpending(&set));
	EXPECT(sigisemptyset(&set), "something is pending still");
	return NULL;
}
KID_STATE(pending)

/* The mask and the dispositions. */
static volatile sig_atomic_t handled_value, handled_mask, handled_on_stack;
static char *alt_stack;
#define ALT_STACK_SIZE 65536
static void handler(int sig, siginfo_t *info, void *context)
{
	sigset_t set;
	char here;
	(void)sig; (void)context;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	handled_mask = sigismember(&set, SIGHUP) && sigismember(&set, SIGTERM) && !sigismember(&set, SIGINT);
	handled_value = info->si_value.sival_int;
	handled_on_stack = &here >= alt_stack && &here < alt_stack + ALT_STACK_SIZE;
}
static void handlers_setup(void)
{
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGWINCH);
	MUST(sigprocmask(SIG_SETMASK, &set, NULL));
	alt_stack = malloc(ALT_STACK_SIZE);
	MUST(sigaltstack(&(stack_t){ .ss_sp = alt_stack, .ss_size = ALT_STACK_SIZE }, NULL));
	sigaddset(&sa.sa_mask, SIGHUP);
	MUST(sigaction(SIGRTMIN + 4, &sa, NULL));
	sa.sa_flags = SA_RESETHAND | SA_NODEFER | SA_SIGINFO;
	MUST(sigaction(SIGRTMIN + 5, &sa, NULL));
	signal(SIGQUIT, SIG_IGN);
}
static verdict handlers_check(void)
{
	sigset_t set;
	struct sigaction sa;
	TRY(sigprocmask(SIG_BLOCK, NULL, &set));
	EXPECT(sigismember(&set, SIGTERM) && sigismember(&set, SIGWINCH) && !sigismember(&set, SIGINT), "the mask is another");
	TRY(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){ .sival_int = 77 }));
	EXPECT(handled_value == 77, "the handler saw %d", handled_value);
	EXPECT(handled_mask, "the handler ran with another mask");
	EXPECT(handled_on_stack, "the handler ran on another stack");
	TRY(sigaction(SIGRTMIN + 4, NULL, &sa));
	EXPECT((sa.sa_flags & ~0x04000000) == (SA_SIGINFO | SA_ONSTACK | SA_RESTART), "flags are %x", sa.sa_flags);
	TRY(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){ .sival_int = 78 }));
	EXPECT(handled_value == 78 && !handled_on_stack, "the second handler saw %d", handled_value);
	TRY(sigaction(SIGRTMIN + 5, NULL, &sa));
	EXPECT(sa.sa_handler == SIG_DFL, "SA_RESETHAND had no effect");
	TRY(sigaction(SIGQUIT, NULL, &sa));
	EXPECT(sa.sa_handler == SIG_IGN, "SIGQUIT is not ignored any more");
	TRY(kill(getpid(), SIGQUIT));
	return NULL;
}
KID_STATE(handlers)

const struct state signal_states[] = {
	{ "signals_pending", pending_start, pending_ask, 0 },
	{ "signal_handlers_and_mask", handlers_start, handlers_ask, 0 },
	{ NULL, NULL, NULL, 0 },
};
