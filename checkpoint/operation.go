package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// ghostLimit is the largest deleted but open file that is carried, in bytes.
// Browsers and X clients keep such files in /dev/shm.
const ghostLimit = 256 << 20

// seizeTimeout is how long CRIU may try to stop the tasks, in seconds. It takes
// milliseconds, unless it can't be done at all.
const seizeTimeout = 3

// Log levels of CRIU (criu/include/log-levels.h): warnings, everything.
const (
	logWarnings = 2
	logDebug    = 4
)

// configFile holds what CRIU takes from a configuration file only. Without it
// every mapped program and library would be read for its build ID; podd
// compares digests of the images in preflight.
const configFile = "file-validation filesize\n"

// operation is what a dump and a restore have in common: the two
// directories, which CRIU reaches through our descriptors, and the options.
type operation struct {
	images, work *os.File
}

func openOperation(imagesDir, workDir string) (*operation, error) {
	images, err := os.Open(imagesDir)
	if err != nil {
		return nil, fmt.Errorf("opening images directory: %w", err)
	}
	work, err := os.Open(workDir)
	if err != nil {
		images.Close()
		return nil, fmt.Errorf("opening work directory: %w", err)
	}
	return &operation{images: images, work: work}, nil
}

func (o *operation) close() error {
	return errors.Join(o.images.Close(), o.work.Close())
}

// output creates the file for what CRIU says before its log is open.
func (o *operation) output() (*os.File, error) {
	return os.Create(filepath.Join(o.work.Name(), outputLog))
}

// options returns the settings that both directions share. What each is for,
// and that together they work, was found by trying.
func (o *operation) options(e *Engine, logFile string) (*rpc.CriuOpts, error) {
	config, err := filepath.Abs(filepath.Join(o.work.Name(), "criu.conf"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(config, []byte(configFile), 0o600); err != nil {
		return nil, fmt.Errorf("writing CRIU's configuration: %w", err)
	}
	level := int32(logWarnings)
	if e.debug {
		level = logDebug
	}
	return &rpc.CriuOpts{
		ImagesDirFd: proto.Int32(int32(o.images.Fd())),
		WorkDirFd:   proto.Int32(int32(o.work.Fd())),
		LogFile:     proto.String(logFile),
		LogLevel:    proto.Int32(level),
		ConfigFile:  proto.String(config),

		NotifyScripts: proto.Bool(true),
		Timeout:       proto.Uint32(seizeTimeout),
		// Connections are kept; the caller blocks the network itself.
		TcpEstablished: proto.Bool(true),
		NetworkLock:    rpc.CriuNetworkLockMethod_SKIP.Enum(),
		// The tasks inherit CRIU's cgroup, which is the pod's on the target.
		ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		FileLocks:         proto.Bool(true),
		// Files that were deleted while a hard link to them remains.
		LinkRemap:  proto.Bool(true),
		GhostLimit: proto.Uint32(ghostLimit),
		// Terminals whose other end is gone, as after a hang-up.
		OrphanPtsMaster: proto.Bool(true),
		// Device files are opened by another path if theirs is gone.
		EvasiveDevices: proto.Bool(true),
		// A unix stream can't be half a connection: refuse it.
		ExtUnixSk: proto.Bool(false),
	}, nil
}
