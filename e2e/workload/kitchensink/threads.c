/* Threads, each blocked in a call of its own when the checkpoint comes. */
#define _GNU_SOURCE
#include "sink.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { IN_READ, IN_COND, IN_SEM, IN_POLL, IN_SLEEP, IN_MUTEX, THREADS };
static const char *const calls[] = { "read", "pthread_cond_wait", "sem_wait", "poll", "nanosleep", "pthread_mutex_lock" };

static __thread char local[64];
static pthread_t threads[THREADS];
static pid_t ids[THREADS];
static int pipes[THREADS][2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, held;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static bool released;
static volatile bool sleepers_done;
static sem_t semaphore, started;

static verdict block(int call, int fd)
{
	char c;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	switch (call) {
	case IN_READ:
		EXPECT(TRY(read(fd, &c, 1)) == 1, "read nothing");
		break;
	case IN_COND:
		pthread_mutex_lock(&mutex);
		while (!released)
			pthread_cond_wait(&condition, &mutex);
		pthread_mutex_unlock(&mutex);
		break;
	case IN_SEM:
		TRY(sem_wait(&semaphore));
		break;
	/* A checkpoint ends these two with EINTR, as a stop signal does: the
	 * kernel has no way to give their restart block to a new process. */
	case IN_POLL:
		while (poll(&p, 1, -1) != 1)
			EXPECT(errno == EINTR, "poll: %s", strerror(errno));
		break;
	case IN_SLEEP:
		while (!sleepers_done)
			EXPECT(nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL) == 0 || errno == EINTR, "nanosleep: %s", strerror(errno));
		break;
	case IN_MUTEX:
		EXPECT(pthread_mutex_lock(&held) == 0, "locking failed");
		pthread_mutex_unlock(&held);
		break;
	}
	return NULL;
}

static verdict thread_verify(int call)
{
	char want[64], name[17] = "";
	sigset_t set;
	siginfo_t info;
	snprintf(want, sizeof want, "local of %s", calls[call]);
	EXPECT(strcmp(local, want) == 0, "thread-local value is \"%s\"", local);
	EXPECT(syscall(SYS_gettid) == ids[call], "thread id is %ld, was %d", syscall(SYS_gettid), ids[call]);
	TRY(prctl(PR_GET_NAME, name));
	EXPECT(strncmp(name, calls[call], 15) == 0, "name is \"%s\"", name);
	TRY(pthread_sigmask(SIG_BLOCK, NULL, &set));
	for (int i = 0; i < THREADS; i++)
		EXPECT(sigismember(&set, SIGRTMIN + i) == (i == call), "signal mask is another");
	/* Sent to this thread alone. */
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + call);
	EXPECT(TRY(sigtimedwait(&set, &info, &(struct timespec){ 0 })) == SIGRTMIN + call && info.si_pid == getpid(), "no signal is pending for the thread");
	return NULL;
}

static void *thread_main(void *arg)
{
	int call = (intptr_t)arg;
	sigset_t set;
	snprintf(local, sizeof local, "local of %s", calls[call]);
	prctl(PR_SET_NAME, calls[call]);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + call);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	ids[call] = syscall(SYS_gettid);
	pthread_kill(pthread_self(), SIGRTMIN + call);
	sem_post(&started);
	verdict v = block(call, pipes[call][0]);
	if (!v)
		v = thread_verify(call);
	return v ? strdup(v) : NULL;
}

/* asleep waits until the thread blocks: its state is S. */
static void asleep(pid_t tid)
{
	char name[64], line[256];
	for (;;) {
		snprintf(name, sizeof name, "/proc/self/task/%d/stat", tid);
		FILE *f = fopen(name, "re");
		if (!f || !fgets(line, sizeof line, f))
			die("%s: %s", name, strerror(errno));
		fclose(f);
		if (strrchr(line, ')')[2] == 'S')
			return;
		nanosleep(&(struct timespec){ .tv_nsec = 1000 * 1000 }, NULL);
	}
}

static void threads_setup(void)
{
	pthread_mutexattr_t robust;
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&held, &robust);
	pthread_mutex_lock(&held);
	sem_init(&semaphore, 0, 0);
	sem_init(&started, 0, 0);
	for (int i = 0; i < THREADS; i++) {
		MUST(pipe(pipes[i]));
		if (pthread_create(&threads[i], NULL, thread_main, (void *)(intptr_t)i))
			die("making a thread failed");
	}
	for (int i = 0; i < THREADS; i++)
		MUST(sem_wait(&started));
	for (int i = 0; i < THREADS; i++)
		asleep(ids[i]);
}

static verdict threads_check(void)
{
	verdict result = NULL;
	for (int i = 0; i < THREADS; i++)
		EXPECT(pthread_tryjoin_np(threads[i], NULL) == EBUSY, "the thread in %s did not wait", calls[i]);
	for (int i = 0; i < THREADS; i++)
		TRY(write(pipes[i][1], "x", 1));
	pthread_mutex_lock(&mutex);
	released = true;
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	sleepers_done = true;
	TRY(sem_post(&semaphore));
	EXPECT(pthread_mutex_unlock(&held) == 0, "the mutex is not ours any more");
	for (int i = 0; i < THREADS; i++) {
		struct timespec until;
		void *v = NULL;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 10;
		EXPECT(pthread_timedjoin_np(threads[i], &v, &until) == 0, "the thread in %s does not come back", calls[i]);
		if (v)
			result = why("thread in %s: %s", calls[i], (const char *)v);
	}
	return result;
}
KID_STATE(threads)

const struct state thread_states[] = {
	{ "threads", threads_start, threads_ask, 0 },
	{ NULL, NULL, NULL, 0 },
};
