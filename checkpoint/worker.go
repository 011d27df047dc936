package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"podd/netconn"
	"podd/procfs"
)

const (
	// maxMessage bounds one message from CRIU. They are a few hundred bytes.
	maxMessage = 64 << 10
	// stopTimeout is how long CRIU may take to roll back after its sockets
	// were closed. It has stopped doing anything useful after that.
	stopTimeout = time.Minute
	// lazyStopTimeout is the same for a restore without all memory: what it restores
	// may wait for pages that nobody gives any more, and it for that.
	lazyStopTimeout = 5 * time.Second
	// lastWords is how long messages of a CRIU that has ended are read.
	lastWords = 100 * time.Millisecond
)

// highestPriority is a nice value (setpriority(2)).
const highestPriority = -20

// errWorkerGone means CRIU closed the conversation, usually by dying.
var errWorkerGone = errors.New("CRIU ended the conversation")

// worker is one running "criu swrk": a CRIU that serves the requests of its
// parent on a SEQPACKET socket (criu/cr-service.c).
type worker struct {
	cmd    *exec.Cmd
	conn   *net.UnixConn
	log    *slog.Logger
	exited chan struct{}
	buf    []byte
	// gate keeps it from images; nil without one.
	gate *net.UnixConn
}

type workerOptions struct {
	// netNS is the path of the network namespace to start in; empty means ours.
	netNS string
	// files are inherited as descriptors 4 and up.
	files []*os.File
	// leftOut is the table of memory to leave out of a dump, or nil.
	leftOut *leftOutTable
	// shared is the table of shared memory to leave out of a dump, or nil.
	shared *sharedTable
	// userfault has restored processes make userfaultfds.
	userfault bool
	// gated has it wait for openGate before it opens an image.
	gated bool
	// output gets what CRIU says before its log file is open.
	output *os.File
	log    *slog.Logger
}

// firstWorkerFile is the descriptor that the first of workerOptions.files has
// in CRIU; the conversation is one below.
const firstWorkerFile = 4

func (e *Engine) startWorker(options workerOptions) (*worker, error) {
	ours, theirs, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(e.path, "--no-default-config", "swrk", "3")
	// A session of its own keeps the signals of our terminal away from it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = append([]*os.File{theirs}, options.files...)
	// Only what CRIU needs to find tar and iptables: no HOME, for there may
	// be a configuration file. Functions are bound now: otherwise CRIU does it when it
	// first calls one, and each process that it makes does it again.
	cmd.Env = []string{"PATH=" + searchPath(), "LC_ALL=C", "LD_BIND_NOW=1"}
	if e.pageFilter != "" {
		// Also without a table: the library makes CRIU's start faster.
		table := -1
		if options.leftOut != nil {
			table = 3 + len(cmd.ExtraFiles)
			cmd.ExtraFiles = append(cmd.ExtraFiles, options.leftOut.file)
		}
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+e.pageFilter, fmt.Sprintf("%s=%d", filterVariable, table))
		if options.shared != nil {
			cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", sharedVarName, 3+len(cmd.ExtraFiles)))
			cmd.ExtraFiles = append(cmd.ExtraFiles, options.shared.file)
		}
	}
	var gate *net.UnixConn
	if options.gated {
		var inside *os.File
		if gate, inside, err = socketPair(unix.SOCK_SEQPACKET); err != nil {
			ours.Close()
			return nil, err
		}
		defer inside.Close()
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", gateVariable, 3+len(cmd.ExtraFiles)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, inside)
	}
	if options.userfault {
		cmd.Env = append(cmd.Env, userfaultVariable+"=1")
	}
	if options.output != nil {
		cmd.Stdout, cmd.Stderr = options.output, options.output
	}
	if options.netNS == "" {
		err = cmd.Start()
	} else {
		err = inNetNS(options.netNS, cmd.Start)
	}
	if err != nil {
		ours.Close()
		if gate != nil {
			gate.Close()
		}
		return nil, fmt.Errorf("starting CRIU: %w", err)
	}
	// What runs beside it can wait for those milliseconds. Restored processes get
	// the priority that they had.
	err = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, highestPriority)
	if err := errors.Join(err, procfs.NiceSession(cmd.Process.Pid, highestPriority)); err != nil {
		e.log.Debug("raising CRIU's priority failed", "error", err)
	}
	w := &worker{cmd: cmd, conn: ours, log: options.log, exited: make(chan struct{}), buf: make([]byte, maxMessage), gate: gate}
	go func() {
		// A subreaper that waits for any child may be faster: the status
		// is of no use, only that it is over.
		_ = cmd.Wait()
		close(w.exited)
	}()
	return w, nil
}

// yield lowers CRIU's priority: nobody waits for what is left for it to do.
func (w *worker) yield() {
	if err := procfs.YieldSession(w.pid()); err != nil {
		w.log.Debug("lowering CRIU's priority failed", "error", err)
	}
}

// searchPath is PATH, or a usual one for a daemon that was started without.
func searchPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// socketPair makes two connected unix sockets: one for us, one to inherit.
func socketPair(kind int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("creating a socket pair for CRIU: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "criu-peer")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("creating a socket pair for CRIU: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

func (w *worker) pid() int { return w.cmd.Process.Pid }

// message is what CRIU sent: a notification, which waits for an answer, or
// the response to the request.
type message struct {
	*rpc.CriuResp
	// file came along with it, or is nil. The receiver closes it.
	file *os.File
}

// notification returns the name of the notification, or "" for a response.
func (m message) notification() string {
	if m.GetType() != rpc.CriuReqType_NOTIFY {
		return ""
	}
	return m.GetNotify().GetScript()
}

func (w *worker) send(request *rpc.CriuReq) error {
	b, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("encoding a request to CRIU: %w", err)
	}
	if _, err := w.conn.Write(b); err != nil {
		return fmt.Errorf("%w: %w", errWorkerGone, err)
	}
	return nil
}

// ask sends a request that has one answer.
func (w *worker) ask(ctx context.Context, request *rpc.CriuReq) (*rpc.CriuResp, error) {
	if err := w.send(request); err != nil {
		return nil, err
	}
	m, err := w.receive(ctx)
	if err != nil {
		return nil, err
	}
	if !m.GetSuccess() {
		return nil, fmt.Errorf("CRIU refused the %s request: %s", request.GetType(), m.GetCrErrmsg())
	}
	return m.CriuResp, nil
}

// answer ends the wait of a notification.
func (w *worker) answer() error {
	return w.send(&rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: proto.Bool(true)})
}

// receive returns the next message. It returns ctx's cause as soon as ctx is
// done; the conversation can go on after that with another context.
func (w *worker) receive(ctx context.Context) (message, error) {
	if ctx.Err() != nil {
		return message{}, context.Cause(ctx)
	}
	if err := w.conn.SetReadDeadline(time.Time{}); err != nil {
		return message{}, fmt.Errorf("%w: %w", errWorkerGone, err)
	}
	done, watcher := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watcher)
		select {
		case <-ctx.Done():
			w.conn.SetReadDeadline(time.Unix(1, 0))
		case <-w.exited:
			// A helper that CRIU left behind may hold the socket open, so
			// the end of input may never come. The last words may.
			w.conn.SetReadDeadline(time.Now().Add(lastWords))
		case <-done:
		}
	}()
	m, err := w.read()
	close(done)
	<-watcher
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return m, err
}

func (w *worker) read() (message, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := w.conn.ReadMsgUnix(w.buf, oob)
	if err != nil && !errors.Is(err, io.EOF) {
		return message{}, fmt.Errorf("%w: %w", errWorkerGone, err)
	}
	file, fileErr := netconn.PassedFile(oob[:oobn], "from-criu")
	if fileErr != nil {
		return message{}, fileErr
	}
	if n == 0 {
		return message{}, errWorkerGone
	}
	m := message{CriuResp: new(rpc.CriuResp), file: file}
	if flags&unix.MSG_TRUNC != 0 {
		err = fmt.Errorf("message from CRIU is longer than %d bytes", len(w.buf))
	} else if err = proto.Unmarshal(w.buf[:n], m.CriuResp); err != nil {
		err = fmt.Errorf("decoding a message from CRIU: %w", err)
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return message{}, err
	}
	if name := m.notification(); name != "" {
		w.log.Debug("CRIU notifies", "notification", name, "criu", w.pid())
	}
	return m, nil
}

// stop ends CRIU by closing the conversation, at which it undoes an unfinished
// dump or restore by itself, and waits until it is gone. Only a CRIU that
// does not end within stopTimeout is killed. It may be called more than once.
func (w *worker) stop() { w.stopWithin(stopTimeout) }

func (w *worker) stopWithin(timeout time.Duration) {
	w.conn.Close()
	if w.gate != nil {
		w.gate.Close()
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.exited:
	case <-timer.C:
		w.log.Error("CRIU did not end, killing it", "criu", w.pid())
		if err := w.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			w.log.Error("killing CRIU failed", "criu", w.pid(), "error", err)
		}
		<-w.exited
	}
	if w.killed() {
		// Its helpers, which are in its process group, outlive it.
		if err := unix.Kill(-w.pid(), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			w.log.Error("killing CRIU's helpers failed", "criu", w.pid(), "error", err)
		}
	}
}

// killed reports whether CRIU, after it exited, was ended by a signal, so that
// it undid nothing.
func (w *worker) killed() bool {
	state := w.cmd.ProcessState
	// Nil when somebody else reaped it: assume the worst.
	return state == nil || state.ExitCode() == -1
}
