/* Timers and clocks. The long ones must not have lost more than the time that
 * went by; the short ones must still tick. */
#define _GNU_SOURCE
#include "sink.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define LONG 5000

static double set_at;

/* remaining checks a timer set to LONG seconds at set_at. Some clocks have
 * whole seconds or ticks of 10 ms. */
static verdict remaining(double left)
{
	double gone = now() - set_at;
	EXPECT(left <= LONG + 0.05 && left >= LONG - gone - 3, "%.3f s are left of %d after %.3f s", left, LONG, gone);
	return NULL;
}

static double seconds(struct timespec t) { return t.tv_sec + t.tv_nsec / 1e9; }

static struct timespec wall, boot, mono;
static void clocks_setup(void)
{
	MUST(clock_gettime(CLOCK_REALTIME, &wall));
	MUST(clock_gettime(CLOCK_MONOTONIC, &mono));
	MUST(clock_gettime(CLOCK_BOOTTIME, &boot));
}
static verdict clocks_check(void)
{
	struct timespec t;
	TRY(clock_gettime(CLOCK_MONOTONIC, &t));
	EXPECT(seconds(t) >= seconds(mono), "the monotonic clock went from %.3f to %.3f", seconds(mono), seconds(t));
	EXPECT(seconds(t) < seconds(mono) + 3600, "the monotonic clock leapt from %.3f to %.3f", seconds(mono), seconds(t));
	TRY(clock_gettime(CLOCK_BOOTTIME, &t));
	EXPECT(seconds(t) >= seconds(boot), "the boot time clock went from %.3f to %.3f", seconds(boot), seconds(t));
	return NULL;
}

static int timer_long, timer_unread, timer_absolute;
static void timerfd_setup(void)
{
	timer_long = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	timer_unread = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
	timer_absolute = MUST(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC));
	set_at = now();
	MUST(timerfd_settime(timer_long, 0, &(struct itimerspec){ { 7, 8 }, { LONG, 0 } }, NULL));
	MUST(timerfd_settime(timer_unread, 0, &(struct itimerspec){ { 0, 0 }, { 0, 1 } }, NULL));
	MUST(timerfd_settime(timer_absolute, TFD_TIMER_ABSTIME, &(struct itimerspec){ { 0, 0 }, { time(NULL) + LONG, 0 } }, NULL));
	struct pollfd p = { .fd = timer_unread, .events = POLLIN };
	if (MUST(poll(&p, 1, 5000)) != 1)
		die("a timer does not expire");
}
static verdict timerfd_check(void)
{
	struct itimerspec t;
	uint64_t ticks = 0;
	TRY(timerfd_gettime(timer_long, &t));
	PASS(remaining(seconds(t.it_value)));
	EXPECT(t.it_interval.tv_sec == 7 && t.it_interval.tv_nsec == 8, "interval is %.9f", seconds(t.it_interval));
	TRY(timerfd_gettime(timer_absolute, &t));
	PASS(remaining(seconds(t.it_value)));
	TRY(read(timer_unread, &ticks, sizeof ticks));
	EXPECT(ticks == 1, "%llu expirations were unread, was 1", (unsigned long long)ticks);
	return NULL;
}

/* One that ticks, and has a tick unread whenever it is looked at. */
static int periodic;
static void periodic_setup(void)
{
	periodic = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
	MUST(timerfd_settime(periodic, 0, &(struct itimerspec){ { 0, 20000000 }, { 0, 20000000 } }, NULL));
	struct pollfd p = { .fd = periodic, .events = POLLIN };
	if (MUST(poll(&p, 1, 5000)) != 1)
		die("a timer does not expire");
}
static verdict periodic_check(void)
{
	for (int i = 0; i < 3; i++) {
		uint64_t ticks = 0;
		PASS(wait_readable(periodic));
		EXPECT(TRY(read(periodic, &ticks, sizeof ticks)) == sizeof ticks && ticks > 0, "no tick");
	}
	return NULL;
}

static volatile sig_atomic_t ticks_real, ticks_posix;
static void on_tick(int sig)
{
	if (sig == SIGALRM)
		ticks_real++;
	else
		ticks_posix++;
}
static verdict ticking(volatile sig_atomic_t *ticks)
{
	int before = *ticks;
	double until = now() + 10;
	while (*ticks < before + 3) {
		EXPECT(now() < until, "it does not tick any more");
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	}
	return NULL;
}

static void itimer_setup(void)
{
	struct sigaction sa = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	MUST(sigaction(SIGALRM, &sa, NULL));
	set_at = now();
	MUST(setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 20000 }, { 0, 20000 } }, NULL));
	MUST(setitimer(ITIMER_VIRTUAL, &(struct itimerval){ { 3, 0 }, { LONG, 0 } }, NULL));
	MUST(setitimer(ITIMER_PROF, &(struct itimerval){ { 4, 0 }, { LONG, 0 } }, NULL));
}
static verdict itimer_check(void)
{
	struct itimerval t;
	PASS(ticking(&ticks_real));
	TRY(getitimer(ITIMER_VIRTUAL, &t));
	PASS(remaining(t.it_value.tv_sec + t.it_value.tv_usec / 1e6));
	EXPECT(t.it_interval.tv_sec == 3, "interval is %ld", t.it_interval.tv_sec);
	TRY(getitimer(ITIMER_PROF, &t));
	PASS(remaining(t.it_value.tv_sec + t.it_value.tv_usec / 1e6));
	EXPECT(t.it_interval.tv_sec == 4, "interval is %ld", t.it_interval.tv_sec);
	return NULL;
}
KID_STATE(itimer)

static timer_t posix_long, posix_short, posix_none;
static void posix_setup(void)
{
	struct sigaction sa = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2, .sigev_value.sival_int = 5 };
	MUST(sigaction(SIGRTMIN + 2, &sa, NULL));
	set_at = now();
	MUST(timer_create(CLOCK_MONOTONIC, &event, &posix_long));
	MUST(timer_settime(posix_long, 0, &(struct itimerspec){ { 5, 6 }, { LONG, 0 } }, NULL));
	MUST(timer_create(CLOCK_REALTIME, &event, &posix_short));
	MUST(timer_settime(posix_short, 0, &(struct itimerspec){ { 0, 20000000 }, { 0, 20000000 } }, NULL));
	event.sigev_notify = SIGEV_NONE;
	MUST(timer_create(CLOCK_BOOTTIME, &event, &posix_none));
	MUST(timer_settime(posix_none, 0, &(struct itimerspec){ { 0, 0 }, { LONG, 0 } }, NULL));
}
static verdict posix_check(void)
{
	struct itimerspec t;
	TRY(timer_gettime(posix_long, &t));
	PASS(remaining(seconds(t.it_value)));
	EXPECT(t.it_interval.tv_sec == 5 && t.it_interval.tv_nsec == 6, "interval is %.9f", seconds(t.it_interval));
	TRY(timer_gettime(posix_none, &t));
	PASS(remaining(seconds(t.it_value)));
	return ticking(&ticks_posix);
}
KID_STATE(posix)

const struct state timer_states[] = {
	{ "clocks", clocks_setup, clocks_check, 0 },
	{ "timerfd", timerfd_setup, timerfd_check, 0 },
	{ "timerfd_periodic", periodic_setup, periodic_check, 0 },
	{ "itimers", itimer_start, itimer_ask, 0 },
	{ "posix_timers", posix_start, posix_ask, 0 },
	{ NULL, NULL, NULL, 0 },
};
