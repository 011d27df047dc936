/* Memory in all its kinds. */
#define _GNU_SOURCE
#include "sink.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define SIZE (256 * 1024)
#define PAGE 4096

/* Anonymous: private, untouched, without access, locked. */
static char *anon, *untouched, *guard, *locked;
static void anon_setup(void)
{
	anon = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	fill(anon, SIZE, 21, 0);
	MUST(mprotect(anon + PAGE, PAGE, PROT_READ));
	untouched = MUST((char *)mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	guard = MUST((char *)mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	locked = MUST((char *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	MUST(mlock(locked, PAGE));
	fill(locked, PAGE, 22, 0);
}
/* vma_line finds the permissions of the mapping that begins at p. */
static verdict permissions(const void *p, const char *want)
{
	char line[512], have[8] = "none";
	FILE *f = fopen("/proc/self/maps", "re");
	EXPECT(f, "/proc/self/maps: %s", strerror(errno));
	while (fgets(line, sizeof line, f)) {
		uintptr_t start, end;
		char perms[8];
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) == 3 && start <= (uintptr_t)p && (uintptr_t)p < end)
			strcpy(have, perms);
	}
	fclose(f);
	EXPECT(strcmp(have, want) == 0, "permissions are %s, were %s", have, want);
	return NULL;
}
static verdict anon_check(void)
{
	PASS(filled(anon, SIZE, 21, 0));
	PASS(permissions(anon, "rw-p"));
	PASS(permissions(anon + PAGE, "r--p"));
	PASS(permissions(guard, "---p"));
	for (size_t i = 0; i < 64 << 20; i += 1 << 20)
		EXPECT(untouched[i] == 0, "an untouched page is not zero");
	PASS(filled(locked, PAGE, 22, 0));
	return NULL;
}

/* Anonymous and shared: a kid and its parent see the same page. */
static char *shared;
static struct kid shared_kid;
static void shared_kid_setup(void) { fill(shared, SIZE, 23, 0); }
static verdict shared_kid_check(void)
{
	PASS(filled(shared, SIZE - PAGE, 23, 0));
	EXPECT(memcmp(shared + SIZE - PAGE, "from the parent", 16) == 0, "the parent's write is not seen");
	strcpy(shared + SIZE - PAGE, "from the child");
	return NULL;
}
static void shared_setup(void)
{
	shared = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	kid_start(&shared_kid, shared_kid_setup, shared_kid_check);
}
static verdict shared_check(void)
{
	PASS(filled(shared, SIZE, 23, 0));
	strcpy(shared + SIZE - PAGE, "from the parent");
	PASS(kid_check(&shared_kid));
	EXPECT(strcmp(shared + SIZE - PAGE, "from the child") == 0, "the child's write is not seen");
	return NULL;
}

/* Of a file: shared, private clean, private written to; the descriptor closed. */
static char *file_shared, *file_private;
static void file_setup(void)
{
	int fd = make_file("mapped", SIZE, 24);
	file_shared = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	file_private = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
	close(fd);
	strcpy(file_shared + PAGE, "shared write");
	strcpy(file_private + 2 * PAGE, "private write");
	strcpy(file_private + SIZE - PAGE, "last page");
}
static verdict file_check(void)
{
	char buf[PAGE];
	EXPECT(strcmp(file_shared + PAGE, "shared write") == 0, "the shared write is lost");
	EXPECT(strcmp(file_private + PAGE, "shared write") == 0, "the private mapping does not see the shared write");
	EXPECT(strcmp(file_private + 2 * PAGE, "private write") == 0, "the private write is lost");
	EXPECT(strcmp(file_private + SIZE - PAGE, "last page") == 0, "the private write to the last page is lost");
	PASS(filled(file_shared + 2 * PAGE, SIZE - 2 * PAGE, 24, 2 * PAGE));
	PASS(filled(file_private + 3 * PAGE, SIZE - 4 * PAGE, 24, 3 * PAGE));
	/* Writes go to the file under its name. */
	strcpy(file_shared + 4 * PAGE, "after");
	int fd = TRY(open(path("mapped"), O_RDONLY | O_CLOEXEC));
	TRY(pread(fd, buf, PAGE, 4 * PAGE));
	close(fd);
	EXPECT(strcmp(buf, "after") == 0, "a write after does not reach the file");
	return NULL;
}

/* Of a file that is deleted since. */
static char *gone;
static void gone_setup(void)
{
	int fd = make_file("mapped-deleted", SIZE, 25);
	gone = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	MUST(unlink(path("mapped-deleted")));
	strcpy(gone, "written when deleted");
}
static verdict gone_check(void)
{
	EXPECT(strcmp(gone, "written when deleted") == 0, "the write is lost");
	PASS(filled(gone + PAGE, SIZE - PAGE, 25, PAGE));
	EXPECT(access(path("mapped-deleted"), F_OK) == -1, "the file has a name again");
	return NULL;
}

/* A memfd, sealed and mapped. */
static int memfd;
static char *memfd_map;
static void memfd_setup(void)
{
	memfd = MUST(memfd_create("sink", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	write_filled(memfd, SIZE, 26);
	MUST(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	memfd_map = MUST((char *)mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0));
	MUST(lseek(memfd, 123, SEEK_SET));
}
static verdict memfd_check(void)
{
	char c;
	PASS(filled(memfd_map, SIZE, 26, 0));
	EXPECT(lseek(memfd, 0, SEEK_CUR) == 123, "offset is %ld", (long)lseek(memfd, 0, SEEK_CUR));
	int seals = TRY(fcntl(memfd, F_GET_SEALS));
	EXPECT(seals == (F_SEAL_SHRINK | F_SEAL_GROW), "seals are %x", seals);
	EXPECT(ftruncate(memfd, 0) == -1 && errno == EPERM, "it can be shrunk");
	memfd_map[5] = 'x';
	TRY(pread(memfd, &c, 1, 5));
	EXPECT(c == 'x', "the mapping is of something else");
	return NULL;
}

const struct state memory_states[] = {
	{ "mmap_private_anonymous", anon_setup, anon_check, 0 },
	{ "mmap_shared_anonymous", shared_setup, shared_check, 0 },
	{ "mmap_file", file_setup, file_check, 0 },
	{ "mmap_deleted_file", gone_setup, gone_check, 0 },
	{ "memfd", memfd_setup, memfd_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
