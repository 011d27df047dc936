package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podd/procfs"
)

// TestMappedFiles compares what is known of files with what the kernel says of each mapping.
func TestMappedFiles(t *testing.T) {
	text, err := shortSmaps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	files, err := mappedFiles(os.Getpid(), text)
	if err != nil {
		t.Fatal(err)
	}
	known, ordinary := 0, 0
	for _, f := range files {
		info, err := os.Lstat(fmt.Sprintf("/proc/self/map_files/%x-%x", f.start, f.end))
		if f.mode != 0 {
			if f.mode&mappedPlain != 0 {
				ordinary++
			}
			if known++; err != nil || uint64(info.Mode().Perm()) != f.mode&0o777 {
				t.Errorf("%+v: %v, %v", f, info, err)
			}
		} else if err == nil {
			t.Errorf("%#x to %#x is of a file", f.start, f.end)
		}
	}
	if ordinary == 0 {
		t.Error("none is of an ordinary file")
	}
	if known == 0 || known == len(files) {
		t.Errorf("%d of %d mappings are of files", known, len(files))
	}
}

// asksMappings asks about a process what CRIU does: for smaps, and for links in map_files.
const asksMappings = `
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char text[1 << 20];
	int proc = open(argv[1], O_RDONLY), smaps = openat(proc, "smaps", O_RDONLY), dir;
	struct stat st;

	if (proc < 0 || smaps < 0 || read(smaps, text, sizeof(text) - 1) < 0)
		return 1;
	*strchrnul(text, '\n') = 0;
	printf("%s\n", text);
	dir = openat(proc, "map_files", O_RDONLY | O_DIRECTORY);
	for (int i = 2; i < argc; i++)
		if (fstatat(dir, argv[i], &st, AT_SYMLINK_NOFOLLOW))
			printf("none%s\n", openat(dir, argv[i], O_PATH) < 0 ? "" : " but opened");
		else
			printf("%o\n", st.st_mode & 0777);
	return 0;
}
`

// buildFilter compiles the library that is preloaded into CRIU; with is taken in place of the
// source without, if there is such.
func buildFilter(output, without string, with ...string) error {
	sources, err := filepath.Glob("pagefilter/*.c")
	if err != nil {
		return err
	}
	sources = slices.DeleteFunc(sources, func(name string) bool { return filepath.Base(name) == without })
	return compile(output, slices.Concat([]string{"-shared", "-fPIC"}, sources, with)...)
}

// compile makes a program or a library of C files.
func compile(output string, arguments ...string) error {
	cc := exec.Command("cc", append([]string{"-O2", "-Wall", "-Wextra", "-Werror", "-o", output}, arguments...)...)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", output, err, out)
	}
	return nil
}

// TestLibraryAnswers has a program ask in CRIU's place, and gives the library answers that are
// not the kernel's.
func TestLibraryAnswers(t *testing.T) {
	dir := t.TempDir()
	program, library := filepath.Join(dir, "asks"), filepath.Join(dir, "filter.so")
	if err := os.WriteFile(program+".c", []byte(asksMappings), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(compile(program, program+".c"), buildFilter(library, "")); err != nil {
		t.Fatal(err)
	}
	text, err := shortSmaps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	files, err := mappedFiles(os.Getpid(), text)
	if err != nil {
		t.Fatal(err)
	}
	// Mappings of this program's file: they stay.
	var links []string
	var kernel mappedFile
	for _, f := range files {
		if f.mode != 0 {
			links, kernel = append(links, fmt.Sprintf("%x-%x", f.start, f.end)), f
		}
	}
	if len(links) < 3 {
		t.Fatalf("only %d mappings are of files", len(links))
	}
	links = links[len(links)-3:]
	ask := func(table *leftOutTable) []string {
		t.Helper()
		cmd := exec.Command(program, append([]string{fmt.Sprintf("/proc/%d", os.Getpid())}, links...)...)
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+library)
		if table != nil {
			cmd.Env = append(cmd.Env, filterVariable+"=3")
			cmd.ExtraFiles = []*os.File{table.file}
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("asking: %v", err)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	table, err := newLeftOutTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	mode := fmt.Sprintf("%o", kernel.mode&0o777)
	for _, c := range []struct {
		what  string
		table *leftOutTable
	}{{"without a table", nil}, {"with an empty one", table}} {
		got := ask(c.table)
		if _, ok := procfs.ParseMapping([]byte(got[0])); !ok || got[3] != mode {
			t.Errorf("%s: %q; the last mode is %s", c.what, got, mode)
		}
	}
	// Of another process, and then of this one: the first link is of no file, the second
	// has another mode, of the third nothing is known.
	var first, second mappedFile
	for _, f := range files {
		switch fmt.Sprintf("%x-%x", f.start, f.end) {
		case links[0]:
			first = mappedFile{start: f.start, end: f.end}
		case links[1]:
			second = mappedFile{start: f.start, end: f.end, mode: 0o200 | mappedPlain}
		}
	}
	table.setText(os.Getpid()+1, []byte("another\n"), nil)
	table.setText(os.Getpid(), []byte("told\n"), []mappedFile{first, second})
	if got, want := ask(table), []string{"told", "none", "200", mode}; !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
	if table.textsRead() != 1 || !table.attached() {
		t.Errorf("%d texts were read, attached: %v", table.textsRead(), table.attached())
	}
}

func TestPlainMappings(t *testing.T) {
	library := procfs.Mapping{Start: 0x1000, End: 0x2000, Inode: 7, Readable: true, Name: "/usr/lib/libc.so.6"}
	if !plain(library) {
		t.Error("a library is not of an ordinary file")
	}
	for what, change := range map[string]func(*procfs.Mapping){
		"shared":        func(m *procfs.Mapping) { m.Shared = true },
		"of no file":    func(m *procfs.Mapping) { m.Inode, m.Name = 0, "[heap]" },
		"of a socket":   func(m *procfs.Mapping) { m.Name = "socket:[7]" },
		"of a memfd":    func(m *procfs.Mapping) { m.Name = "/memfd:x (deleted)" },
		"of a segment":  func(m *procfs.Mapping) { m.Name = "/SYSV00000007" },
		"of a device":   func(m *procfs.Mapping) { m.Name = "/dev/zero" },
		"of an AIO":     func(m *procfs.Mapping) { m.Name = "/[aio]" },
		"without names": func(m *procfs.Mapping) { m.Name += " (deleted)" },
	} {
		m := library
		if change(&m); plain(m) {
			t.Errorf("one %s is of an ordinary file", what)
		}
	}
}
