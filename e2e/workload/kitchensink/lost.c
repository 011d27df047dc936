/*
 * What CRIU 4.2.1 loses without a word: dump and restore succeed. Where it can
 * be seen from outside a move must refuse it; where it can't, it is a limit to
 * be documented.
 */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

/* The flag that makes each read take one. */
static int semaphore;
static void eventfd_semaphore_setup(void) { semaphore = MUST(eventfd(2, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)); }
static verdict eventfd_semaphore_check(void)
{
	eventfd_t v;
	TRY(eventfd_read(semaphore, &v));
	EXPECT(v == 1, "it gave %llu", (unsigned long long)v);
	return NULL;
}

/* What a process's end would undo. */
static int undo;
static void sem_undo_setup(void)
{
	undo = MUST(semget(IPC_PRIVATE, 1, 0600));
	MUST(semop(undo, &(struct sembuf){ .sem_op = 5, .sem_flg = SEM_UNDO }, 1));
}
static verdict sem_undo_alive(void) { return NULL; }
static struct kid sem_undo_kid;
static int sem_undo_id(void)
{
	struct seminfo info;
	int max = semctl(0, 0, SEM_INFO, &info);
	for (int i = 0; i <= max; i++) {
		struct semid_ds ds;
		int id = semctl(i, 0, SEM_STAT, &ds);
		if (id >= 0)
			return id;
	}
	return -1;
}
static void sem_undo_start(void) { kid_start(&sem_undo_kid, sem_undo_setup, sem_undo_alive); }
static verdict sem_undo_check(void)
{
	int id = TRY(sem_undo_id());
	PASS(kid_check(&sem_undo_kid));
	TRY(kill(sem_undo_kid.pid, SIGKILL));
	TRY(waitpid(sem_undo_kid.pid, NULL, 0));
	int value = semctl(id, 0, GETVAL);
	semctl(id, 0, IPC_RMID);
	EXPECT(value == 0, "the value is %d after its process ended, was to be 0", value);
	return NULL;
}

/* An inotify event that nobody has read yet. */
static int watcher;
static void inotify_unread_setup(void)
{
	watcher = MUST(inotify_init1(IN_CLOEXEC));
	MUST(mkdir(path("unread"), 0755));
	MUST(inotify_add_watch(watcher, path("unread"), IN_CREATE));
	close(make_file("unread/file", 0, 0));
}
static verdict inotify_unread_check(void)
{
	int n = 0;
	TRY(ioctl(watcher, FIONREAD, &n));
	EXPECT(n > 0, "it is lost");
	return NULL;
}

/* The name of the other end of a connection to a named socket: the accepted
 * end is restored without the name that it has from the listener. */
static int connected, accepted;
static void unix_peer_name_setup(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, path("named"), sizeof a.sun_path - 1);
	int listener = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(bind(listener, (struct sockaddr *)&a, sizeof a));
	MUST(listen(listener, 5));
	connected = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	MUST(connect(connected, (struct sockaddr *)&a, sizeof a));
	accepted = MUST(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
}
static verdict unix_peer_name_check(void)
{
	struct sockaddr_un a = { 0 };
	socklen_t n = sizeof a;
	TRY(getsockname(accepted, (struct sockaddr *)&a, &n));
	EXPECT(strcmp(a.sun_path, path("named")) == 0, "the accepted end's own name is \"%s\"", a.sun_path);
	n = sizeof a;
	TRY(getpeername(connected, (struct sockaddr *)&a, &n));
	EXPECT(strcmp(a.sun_path, path("named")) == 0, "the peer's name is \"%s\"", a.sun_path);
	return NULL;
}

const struct state lost_states[] = {
	{ "eventfd_semaphore", eventfd_semaphore_setup, eventfd_semaphore_check, 0 },
	{ "inotify_unread", inotify_unread_setup, inotify_unread_check, 0 },
	{ "semaphore_undo", sem_undo_start, sem_undo_check, 0 },
	{ "unix_peer_name", unix_peer_name_setup, unix_peer_name_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
