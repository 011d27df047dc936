package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// session makes a pod in which the programs of this machine run: its root is an
// overlay over that of the machine, with what is in BASE for the upper layer,
// /dev, /tmp and /run. Its init is this program's copy in /tmp.
func session(base, script string) error {
	if err := closeInherited(); err != nil {
		return err
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	root := filepath.Join(base, "root")
	for _, m := range []struct{ source, target, kind, options string }{
		{"overlay", "", "overlay", fmt.Sprintf("lowerdir=/,upperdir=%[1]s/upper,workdir=%[1]s/work,index=on,nfs_export=on", base)},
		{base + "/dev", "dev", "", ""},
		{base + "/tmp", "tmp", "", ""},
		{base + "/run", "run", "", ""},
		{"devpts", "dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"},
		{"mqueue", "dev/mqueue", "mqueue", ""},
		{"sysfs", "sys", "sysfs", ""},
	} {
		flags := uintptr(0)
		if m.kind == "" {
			flags = syscall.MS_BIND
		}
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.source, target, m.kind, flags, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", target, err)
		}
	}
	if err := devices(filepath.Join(root, "dev")); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := enter(root); err != nil {
		return err
	}
	const copied = "/tmp/program"
	return syscall.Exec(copied, []string{copied, "init", script}, os.Environ())
}

// sessionInit starts a shell script, whose output goes to /tmp/output, and
// reaps what there is to reap.
func sessionInit(script string) error {
	output, err := os.OpenFile("/tmp/output", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if _, err := syscall.ForkExec("/bin/sh", []string{"/bin/sh", "-euc", script}, &syscall.ProcAttr{
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"},
		Files: []uintptr{0, output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}); err != nil {
		return err
	}
	output.Close()
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); err == syscall.ECHILD {
			syscall.Pause()
		}
	}
}

// devices makes what every program expects in /dev.
func devices(dir string) error {
	for name, number := range map[string]int{
		"null": 1<<8 | 3, "zero": 1<<8 | 5, "full": 1<<8 | 7, "random": 1<<8 | 8, "urandom": 1<<8 | 9, "tty": 5 << 8,
	} {
		path := filepath.Join(dir, name)
		if err := syscall.Mknod(path, syscall.S_IFCHR, number); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "shm"), 0o777); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(dir, "shm"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
