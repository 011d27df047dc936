/* Open files: position and flags, deleted ones, directories, devices. */
#define _GNU_SOURCE
#include "sink.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

/* Flags and offsets; a duplicate shares them, a second open does not. */
static int plain, duplicate, second, appending, path_only;
static void open_setup(void)
{
	plain = make_file("plain", 5000, 31);
	MUST(lseek(plain, 1234, SEEK_SET));
	duplicate = MUST(dup2(plain, 777));
	second = MUST(open(path("plain"), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
	appending = MUST(open(path("appended"), O_WRONLY | O_CREAT | O_APPEND | O_DSYNC | O_CLOEXEC, 0600));
	MUST(write(appending, "before", 6));
	path_only = MUST(open(path("plain"), O_PATH | O_CLOEXEC));
	MUST(fcntl(second, F_SETOWN, getpid()));
	MUST(fcntl(second, F_SETSIG, SIGRTMIN + 7));
}
static verdict open_check(void)
{
	char buf[32] = "";
	EXPECT(lseek(plain, 0, SEEK_CUR) == 1234, "offset is %ld, was 1234", (long)lseek(plain, 0, SEEK_CUR));
	TRY(lseek(duplicate, 2000, SEEK_SET));
	EXPECT(lseek(plain, 0, SEEK_CUR) == 2000, "the duplicate has an offset of its own");
	EXPECT(lseek(second, 0, SEEK_CUR) == 0, "the second descriptor's offset is shared");
	EXPECT(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(duplicate, F_GETFD) == 0, "close-on-exec flags are %d, %d", fcntl(plain, F_GETFD), fcntl(duplicate, F_GETFD));
	EXPECT((fcntl(second, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK), "flags are %o", fcntl(second, F_GETFL));
	EXPECT(fcntl(second, F_GETOWN) == getpid() && fcntl(second, F_GETSIG) == SIGRTMIN + 7, "owner is %d, signal %d", fcntl(second, F_GETOWN), fcntl(second, F_GETSIG));
	EXPECT((fcntl(appending, F_GETFL) & (O_APPEND | O_DSYNC)) == (O_APPEND | O_DSYNC), "flags are %o", fcntl(appending, F_GETFL));
	TRY(lseek(appending, 0, SEEK_SET));
	TRY(write(appending, "after", 5));
	int fd = TRY(open(path("appended"), O_RDONLY | O_CLOEXEC));
	TRY(read(fd, buf, sizeof buf - 1));
	close(fd);
	EXPECT(strcmp(buf, "beforeafter") == 0, "appended file has \"%s\"", buf);
	EXPECT(fcntl(path_only, F_GETFL) & O_PATH, "O_PATH is lost");
	TRY(lseek(plain, 0, SEEK_SET));
	return read_filled(plain, 5000, 31);
}

/* Deleted files. Small and large ones go different ways in CRIU. */
static int small, large, of_two, unnamed, replaced;
static void deleted_setup(void)
{
	small = make_file("deleted-small", 4000, 32);
	large = make_file("deleted-large", 2 << 20, 33);
	of_two = make_file("link1", 3000, 34);
	MUST(link(path("link1"), path("link2")));
	MUST(unlink(path("link1")));
	MUST(unlink(path("deleted-small")));
	MUST(unlink(path("deleted-large")));
	unnamed = MUST(open(work_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	write_filled(unnamed, 1000, 35);
	replaced = make_file("replaced", 500, 36);
	close(make_file("replacement", 500, 37));
	MUST(rename(path("replacement"), path("replaced")));
	MUST(lseek(small, 10, SEEK_SET));
}
static verdict deleted_file(const char *name, int fd, size_t n, uint32_t seed, nlink_t links)
{
	struct stat st;
	verdict v;
	TRY(fstat(fd, &st));
	EXPECT(st.st_nlink == links, "%s has %lu links, had %lu", name, (unsigned long)st.st_nlink, (unsigned long)links);
	EXPECT(st.st_size == (off_t)n, "%s has %ld bytes, had %zu", name, (long)st.st_size, n);
	TRY(lseek(fd, 0, SEEK_SET));
	v = read_filled(fd, n, seed);
	EXPECT(!v, "%s: %s", name, v);
	EXPECT(TRY(pwrite(fd, "x", 1, n)) == 1, "%s can't be written to", name);
	return NULL;
}
static verdict deleted_check(void)
{
	EXPECT(lseek(small, 0, SEEK_CUR) == 10, "offset is %ld, was 10", (long)lseek(small, 0, SEEK_CUR));
	PASS(deleted_file("the small file", small, 4000, 32, 0));
	PASS(deleted_file("the large file", large, 2 << 20, 33, 0));
	PASS(deleted_file("the file with another name", of_two, 3000, 34, 1));
	PASS(deleted_file("the file without a name", unnamed, 1000, 35, 0));
	PASS(deleted_file("the replaced file", replaced, 500, 36, 0));
	for (const char **name = (const char *[]){ "deleted-small", "deleted-large", "link1", NULL }; *name; name++)
		EXPECT(access(path(*name), F_OK) == -1, "%s has its name back", *name);
	struct stat st;
	TRY(stat(path("link2"), &st));
	EXPECT(st.st_size == 3001, "the other name is of another file");
	return NULL;
}

/* A directory half read, a deleted one, device files. */
static DIR *dir;
static int deleted_dir, null, zero, proc;
static void misc_setup(void)
{
	MUST(mkdir(path("dir"), 0755));
	for (int i = 0; i < 10; i++) {
		char name[32];
		snprintf(name, sizeof name, "dir/%d", i);
		close(make_file(name, 0, 0));
	}
	dir = opendir(path("dir"));
	MUST(mkdir(path("dir-deleted"), 0755));
	deleted_dir = MUST(open(path("dir-deleted"), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	MUST(rmdir(path("dir-deleted")));
	null = MUST(open("/dev/null", O_WRONLY | O_CLOEXEC));
	zero = MUST(open("/dev/zero", O_RDONLY | O_CLOEXEC));
	proc = MUST(open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
}
static verdict misc_check(void)
{
	int n = 0;
	char buf[16];
	struct stat st;
	while (readdir(dir))
		n++;
	EXPECT(n == 12, "the directory has %d entries, had 12", n);
	TRY(openat(dirfd(dir), "5", O_RDONLY | O_CLOEXEC));
	TRY(fstat(deleted_dir, &st));
	EXPECT(st.st_nlink == 0, "the deleted directory has %lu links", (unsigned long)st.st_nlink);
	EXPECT(write(null, "x", 1) == 1, "/dev/null: %s", strerror(errno));
	EXPECT(read(zero, buf, 16) == 16 && buf[0] == 0, "/dev/zero: %s", strerror(errno));
	EXPECT(atoi((read(proc, buf, 15), buf)) == getpid(), "/proc/self/stat is of process %d", atoi(buf));
	return NULL;
}

const struct state file_states[] = {
	{ "open_files", open_setup, open_check, 0 },
	{ "deleted_files", deleted_setup, deleted_check, 0 },
	{ "directories_and_devices", misc_setup, misc_check, 0 },
	{ NULL, NULL, NULL, 0 },
};
