//go:build root

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

// opensMappings opens mappings of its parent's as CRIU does, and says whether a file was opened.
const opensMappings = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	int dir = openat(open(argv[1], O_RDONLY), "map_files", O_RDONLY | O_DIRECTORY);

	for (int i = 2; i < argc; i++)
		printf("%s\n", fcntl(openat(dir, argv[i], O_RDONLY), F_GETFL) & O_PATH ? "found" : "opened");
	return 0;
}
`

func TestPlainFilesAreNotOpened(t *testing.T) {
	dir := t.TempDir()
	program, library := filepath.Join(dir, "opens"), filepath.Join(dir, "filter.so")
	if err := os.WriteFile(program+".c", []byte(opensMappings), 0o600); err != nil {
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
	table, err := newLeftOutTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	// Of this program's own file there are several.
	var links []string
	var told []mappedFile
	for _, f := range files {
		if f.mode&mappedPlain != 0 && len(told) < 2 {
			f.mode &^= mappedPlain * uint64(len(told))
			links, told = append(links, fmt.Sprintf("%x-%x", f.start, f.end)), append(told, f)
		}
	}
	table.setText(os.Getpid(), text, told)
	cmd := exec.Command(program, append([]string{fmt.Sprintf("/proc/%d", os.Getpid())}, links...)...)
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+library, filterVariable+"=3")
	cmd.ExtraFiles = []*os.File{table.file}
	out, err := cmd.Output()
	if want := "found opened"; err != nil || strings.Join(strings.Fields(string(out)), " ") != want {
		t.Errorf("%s, %v; want %s", out, err, want)
	}
}
