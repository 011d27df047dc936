//go:build root

package filesync

import (
	"os"
	"testing"
)

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
}

func TestRootRandomDisk(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, diskDir(t))
	testRandom(t, src, dst, &mutator{xattrs: true, asRoot: true})
}

func TestRootRandomMemory(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, memoryDir(t))
	testRandom(t, src, dst, &mutator{asRoot: true})
}

func TestRootConcurrentDisk(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, diskDir(t))
	testConcurrent(t, src, dst, &mutator{xattrs: true, asRoot: true})
}

func TestRootAcrossFileSystems(t *testing.T) {
	requireRoot(t)
	src, _ := dirs(t, diskDir(t))
	_, dst := dirs(t, memoryDir(t))
	testConcurrent(t, src, dst, &mutator{asRoot: true})
}
