package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// asksMounts asks about its open files what CRIU does, and for the byte that says that an image is
// open, which nobody sends.
const asksMounts = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static void ask(int dir, int fd)
{
	char name[32], text[4096] = "", *line;
	int info;

	snprintf(name, sizeof(name), "fdinfo/%d", fd);
	info = openat(dir, name, O_RDONLY);
	if (read(info, text, sizeof(text) - 1) < 0)
		exit(1);
	close(info);
	line = strstr(text, "mnt_id:");
	printf("%s %d\n", strncmp(text, "mnt_id:", 7) ? "kernel" : "library", line ? atoi(line + 7) : -1);
}

static void receive(int fd)
{
	char bytes[2] = { 1 };
	ssize_t n = recv(fd, bytes, 1, MSG_DONTWAIT);

	printf("%zd %d\n", n, bytes[0]);
	recv(fd, bytes, 2, MSG_DONTWAIT);
}

int main(int argc, char **argv)
{
	int proc = open("/proc", O_PATH), self = openat(proc, "self", O_PATH), other, p[2], s[2];
	char number[16];
	unsigned long long rings;

	for (int i = 1; i < argc; i++)
		ask(self, open(argv[i], O_PATH));
	if (pipe(p))
		return 1;
	ask(self, p[0]);
	/* There CRIU looks for more. */
	snprintf(number, sizeof(number), "%d", getpid());
	ask(openat(proc, number, O_PATH), open("/", O_PATH));
	/* Where another process's is, ours is not asked for. */
	snprintf(number, sizeof(number), "%d", getppid());
	other = openat(proc, number, O_PATH);
	ask(other, 0);
	dup2(other, self);
	ask(self, 0);
	close(self);
	snprintf(number, sizeof(number), "%d", getpid());
	if (openat(proc, number, O_PATH) != self)
		return 1;
	ask(self, open("/", O_PATH));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || dup2(s[0], 50) != 50)
		return 1;
	if (dup2(eventfd(0, EFD_NONBLOCK), 51) != 51)
		return 1;
	receive(s[0]);
	receive(50);
	rings = 0;
	if (read(51, &rings, sizeof(rings)) < 0)
		rings = 0;
	printf("rung %llu times\n", rings);
	return 0;
}
`

func TestLibraryKnowsMounts(t *testing.T) {
	dir := t.TempDir()
	program, library := filepath.Join(dir, "asks"), filepath.Join(dir, "filter.so")
	if err := os.WriteFile(program+".c", []byte(asksMounts), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(compile(program, program+".c"), buildFilter(library, "")); err != nil {
		t.Fatal(err)
	}
	table, err := newLeftOutTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	if table.answerOpens(50, 51) {
		t.Error("a library that is not there is to answer")
	}
	ask := func(table *leftOutTable) string {
		cmd := exec.Command(program, "/", "/proc", "/proc/self/maps", program)
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+library)
		if table != nil {
			cmd.Env = append(cmd.Env, filterVariable+"=3")
			cmd.ExtraFiles = []*os.File{table.file}
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("asking: %v", err)
		}
		return string(out)
	}
	kernel := ask(nil)
	lines := strings.Split(kernel, "\n")
	if strings.Contains(kernel, "library") || lines[0] == lines[1] {
		t.Fatalf("without a table:\n%s", kernel)
	}
	// Without a socket to answer on.
	want := strings.Replace(kernel, "kernel", "library", 4)
	if got := ask(table); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !table.answerOpens(50, 51) {
		t.Error("the library is not there")
	}
	want = strings.Replace(want, fmt.Sprintln(-1, 1)+"rung 0", fmt.Sprintln(1, 0)+"rung 1", 1)
	if got := ask(table); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
