/* System V and POSIX shared memory, semaphores and queues. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <semaphore.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>

#define SIZE (64 * 1024)

static key_t key(int n) { return 0x51400000 + (getpid() << 4 & 0xffff0) + n; }

/* System V. What outlives its processes is removed by the check. */
static int shm, shm_detached, sem, queue;
static char *shm_map;
static void sysv_shm_setup(void)
{
	shm = MUST(shmget(key(1), SIZE, IPC_CREAT | IPC_EXCL | 0640));
	shm_map = MUST((char *)shmat(shm, NULL, 0));
	fill(shm_map, SIZE, 71, 0);
	shm_detached = MUST(shmget(key(2), SIZE, IPC_CREAT | IPC_EXCL | 0600));
	char *p = MUST((char *)shmat(shm_detached, NULL, 0));
	fill(p, SIZE, 72, 0);
	MUST(shmdt(p));
}
static verdict sysv_shm_check(void)
{
	struct shmid_ds ds;
	PASS(filled(shm_map, SIZE, 71, 0));
	EXPECT(TRY(shmget(key(1), 0, 0)) == shm, "its id is another");
	TRY(shmctl(shm, IPC_STAT, &ds));
	EXPECT((ds.shm_perm.mode & 0777) == 0640 && ds.shm_nattch == 1, "mode %o, %lu attachments", ds.shm_perm.mode, ds.shm_nattch);
	char *p = TRY((char *)shmat(shm_detached, NULL, SHM_RDONLY));
	PASS(filled(p, SIZE, 72, 0));
	TRY(shmdt(p));
	TRY(shmdt(shm_map));
	TRY(shmctl(shm, IPC_RMID, NULL));
	TRY(shmctl(shm_detached, IPC_RMID, NULL));
	return NULL;
}
/* In a kid, so that nobody inherits the attachment. */
KID_STATE(sysv_shm)

static void sysv_sem_setup(void)
{
	unsigned short values[3] = { 3, 0, 17 };
	sem = MUST(semget(key(3), 3, IPC_CREAT | IPC_EXCL | 0600));
	MUST(semctl(sem, 0, SETALL, values));
}
static verdict sysv_sem_check(void)
{
	unsigned short v[3];
	EXPECT(TRY(semget(key(3), 0, 0)) == sem, "its id is another");
	TRY(semctl(sem, 0, GETALL, v));
	EXPECT(v[0] == 3 && v[1] == 0 && v[2] == 17, "values are %d %d %d", v[0], v[1], v[2]);
	TRY(semop(sem, &(struct sembuf){ .sem_num = 0, .sem_op = -3, .sem_flg = IPC_NOWAIT }, 1));
	TRY(semctl(sem, 0, IPC_RMID));
	return NULL;
}

struct message { long type; char text[64]; };
static void sysv_queue_setup(void)
{
	queue = MUST(msgget(key(4), IPC_CREAT | IPC_EXCL | 0600));
	MUST(msgsnd(queue, &(struct message){ 5, "five" }, 5, 0));
	MUST(msgsnd(queue, &(struct message){ 2, "two" }, 4, 0));
	MUST(msgsnd(queue, &(struct message){ 5, "five again" }, 11, 0));
}
static verdict sysv_queue_check(void)
{
	struct message m;
	EXPECT(TRY(msgget(key(4), 0)) == queue, "its id is another");
	EXPECT(TRY(msgrcv(queue, &m, sizeof m.text, 2, IPC_NOWAIT)) == 4 && strcmp(m.text, "two") == 0, "message is \"%s\"", m.text);
	EXPECT(TRY(msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT)) == 5 && strcmp(m.text, "five") == 0, "message is \"%s\"", m.text);
	EXPECT(TRY(msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT)) == 11 && strcmp(m.text, "five again") == 0, "message is \"%s\"", m.text);
	TRY(msgctl(queue, IPC_RMID, NULL));
	return NULL;
}

/* POSIX: named objects, one of each unlinked while in use. */
static char name[4][64];
static const char *posix_name(int i)
{
	snprintf(name[i], sizeof name[i], "/kitchensink-%d-%d", getpid(), i);
	return name[i];
}
static char *posix_map, *posix_map_unlinked;
static int posix_fd;
static char *map_shm(int i, uint32_t seed, int *fd)
{
	*fd = MUST(shm_open(posix_name(i), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
	MUST(ftruncate(*fd, SIZE));
	char *p = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0));
	fill(p, SIZE, seed, 0);
	return p;
}
static void posix_shm_setup(void)
{
	int fd;
	posix_map = map_shm(0, 73, &posix_fd);
	posix_map_unlinked = map_shm(1, 74, &fd);
	close(fd);
	MUST(shm_unlink(name[1]));
}
static verdict posix_shm_check(void)
{
	char c;
	PASS(filled(posix_map, SIZE, 73, 0));
	PASS(filled(posix_map_unlinked, SIZE, 74, 0));
	int fd = TRY(shm_open(name[0], O_RDWR | O_CLOEXEC, 0));
	posix_map[9] = 'm';
	TRY(pread(fd, &c, 1, 9));
	EXPECT(c == 'm', "the name is of another object");
	TRY(pread(posix_fd, &c, 1, 9));
	EXPECT(c == 'm', "the descriptor is of another object");
	close(fd);
	TRY(shm_unlink(name[0]));
	return NULL;
}

/* A named semaphore, and one in shared memory that a kid waits for. */
static sem_t *named, *in_memory;
static struct kid sem_kid;
static void sem_kid_setup(void) { }
static verdict sem_kid_check(void)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	TRY(sem_timedwait(in_memory, &until));
	return NULL;
}
static void posix_sem_setup(void)
{
	named = sem_open(posix_name(2), O_CREAT | O_EXCL, 0600, 6);
	if (named == SEM_FAILED)
		die("sem_open: %s", strerror(errno));
	in_memory = MUST((sem_t *)mmap(NULL, sizeof *in_memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	MUST(sem_init(in_memory, 1, 0));
	kid_start(&sem_kid, sem_kid_setup, sem_kid_check);
}
static verdict posix_sem_check(void)
{
	int value;
	TRY(sem_getvalue(named, &value));
	EXPECT(value == 6, "value is %d, was 6", value);
	TRY(sem_wait(named));
	sem_t *again = sem_open(name[2], 0);
	EXPECT(again != SEM_FAILED, "sem_open: %s", strerror(errno));
	TRY(sem_getvalue(again, &value));
	EXPECT(value == 5, "the name is of a semaphore with value %d", value);
	TRY(sem_post(in_memory));
	PASS(kid_check(&sem_kid));
	TRY(sem_unlink(name[2]));
	return NULL;
}

const struct state ipc_states[] = {
	{ "sysv_shared_memory", sysv_shm_start, sysv_shm_ask, 0 },
	{ "sysv_semaphores", sysv_sem_setup, sysv_sem_check, 0 },
	{ "sysv_queue", sysv_queue_setup, sysv_queue_check, 0 },
	{ "posix_shared_memory", posix_shm_setup, posix_shm_check, 0 },
	{ "posix_semaphores", posix_sem_setup, posix_sem_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
