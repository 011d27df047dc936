package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podd/e2e/workload/vncclient"
	"podd/lab"
	"podd/pod"
)

// What is shown: the pod, its name for clients, and the way it goes.
const (
	podName = "alice"
	domain  = podName + "." + lab.Zone
)

var hosts = []string{"a", "b", "c"}

const (
	// patience bounds what takes a second on a fast machine.
	patience = 30 * time.Second
	// watched is how many changes of the picture are awaited after each move,
	// at fifty a second.
	watched = 75
	// settled is how many are awaited until what was typed is in the picture.
	settled = 25
	// downTimeout bounds taking the lab down.
	downTimeout = time.Minute
)

// PictureDir is where screenshots are saved unless told otherwise, in the
// working directory.
const PictureDir = "demo-output"

// Options say how the demo runs. Out is needed.
type Options struct {
	// Out is told the story.
	Out io.Writer
	// BinDir has podctl, podd, podproxy and podinit; empty means where the
	// running program is.
	BinDir string
	// PictureDir is where the screenshots go; empty means PictureDir.
	PictureDir string
}

// show is one performance.
type show struct {
	options Options
	begun   time.Time
	lab     *lab.Lab
	viewer  *vncclient.Client
	// shell is the number of the terminal's shell in the pod.
	shell   int
	journey []leg
}

// leg is one move, as it was measured.
type leg struct {
	from, to string
	receipt  *receipt
	// silence is the longest time without a change of the viewer's picture.
	silence time.Duration
}

// Run performs the demo and returns when nothing of it is left on the machine,
// also when it fails or ctx ends. The error wraps lab.ErrUp when there is a lab
// already, which is left alone.
func Run(ctx context.Context, o Options) error {
	s := &show{options: o, begun: time.Now()}
	if err := s.prepare(); err != nil {
		return err
	}
	var err error
	if s.lab, err = lab.Up(ctx, lab.Options{Hosts: len(hosts), BinDir: s.options.BinDir}); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	}
	s.introduce()
	err = s.play(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx) // what was interrupted does not matter
	}
	if err != nil {
		s.say("The demo ends early; the lab is taken down.")
	}
	if s.viewer != nil {
		err = errors.Join(err, s.viewer.Close())
	}
	if err := errors.Join(err, s.clear(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	s.conclude()
	return nil
}

// prepare finds out what would be missing before anything is made.
func (s *show) prepare() error {
	if err := CheckPrograms(); err != nil {
		return err
	}
	if s.options.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding podctl: %w", err)
		}
		s.options.BinDir = filepath.Dir(self)
	}
	if s.options.PictureDir == "" {
		s.options.PictureDir = PictureDir
	}
	dir, err := filepath.Abs(s.options.PictureDir)
	if err != nil {
		return fmt.Errorf("the directory of the screenshots: %w", err)
	}
	s.options.PictureDir = dir
	return nil
}

// play is the demo while the lab is up.
func (s *show) play(ctx context.Context) error {
	s.say("The lab is up.")
	if _, err := s.podctl(ctx, append([]string{"run", "--detach", "--name", podName}, Desktop()...)...); err != nil {
		return err
	}
	here, err := s.inspect(ctx)
	if err != nil {
		return err
	}
	s.say("A desktop starts in a pod called %q on host %s, as an ordinary user:", podName, here.Host)
	s.detail("$ podctl run -d --name %s --user %s -- sh -c '(X server, window manager, clock, counter, terminal)'", podName, desktopUser)

	public, err := s.resolve(ctx)
	if err != nil {
		return err
	}
	if public != here.PublicAddress {
		return fmt.Errorf("DNS says %s is %s, podctl says %s", domain, public, here.PublicAddress)
	}
	if err := s.connect(ctx, public); err != nil {
		return err
	}
	s.say("Its user looks at it: one VNC connection, through the proxy, open until the end of this demo:")
	s.detail("%s -> %s (%s)", s.viewer.Conn().LocalAddr(), s.viewer.Conn().RemoteAddr(), domain)
	if err := s.findTerminal(ctx); err != nil {
		return err
	}
	line, err := s.write(ctx, `me=$$; echo "start: shell $me"`)
	if err != nil {
		return err
	}
	if _, err := fmt.Sscanf(line, "start: shell %d", &s.shell); err != nil {
		return fmt.Errorf("the terminal's shell wrote %q: %w", line, err)
	}
	s.say("The user types into the terminal; the shell answers, and keeps its number in a variable:")
	s.detail("%s", line)
	if err := s.screenshot(ctx, "before.png"); err != nil {
		return err
	}
	s.whereabouts(public, here)
	for i := range hosts {
		if err := s.leg(ctx, i+1, hosts[i], hosts[(i+1)%len(hosts)]); err != nil {
			return err
		}
	}
	return s.screenshot(ctx, "after.png")
}

// leg moves the desktop once and finds out what its user noticed.
func (s *show) leg(ctx context.Context, number int, from, to string) error {
	s.announce(number, from, to)
	s.viewer.ResetSilence()
	before := s.viewer.Stats()
	receipt, err := s.move(ctx, to)
	if err != nil {
		return err
	}
	moved := s.viewer.Stats()
	s.stages(receipt, from, to, number == 1)

	watching, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.viewer.WaitUpdates(watching, watched); err != nil {
		return fmt.Errorf("watching the picture after the move to host %s: %w", to, err)
	}
	leg := leg{from, to, receipt, s.viewer.Stats().Silence}
	s.journey = append(s.journey, leg)
	s.noticed(leg, moved.Updates-before.Updates, s.viewer.Stats().Updates-moved.Updates)

	line, err := s.write(ctx, fmt.Sprintf(`echo "move %d: shell $$, started as $me"`, number))
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("move %d: shell %d, started as %[2]d", number, s.shell); line != want {
		return fmt.Errorf("after the move to host %s the terminal's shell wrote %q; want %q", to, line, want)
	}
	s.detail("The same shell answers what the user types: %s", line)

	here, err := s.inspect(ctx)
	if err != nil {
		return err
	}
	address, err := s.resolve(ctx)
	if err != nil {
		return err
	}
	if here.Host != to || here.Phase != pod.PhaseRunning {
		return fmt.Errorf("after the move to host %s the pod is %s on host %s", to, here.Phase, here.Host)
	}
	if address != here.PublicAddress || address.String() != remoteHost(s.viewer.Conn()) {
		return fmt.Errorf("after the move to host %s DNS says %s is %s; the viewer is connected to %s", to, domain, address, s.viewer.Conn().RemoteAddr())
	}
	s.whereabouts(address, here)
	return nil
}

// picture is the file of a screenshot.
func (s *show) picture(name string) string { return filepath.Join(s.options.PictureDir, name) }

// screenshot saves what the viewer shows.
func (s *show) screenshot(ctx context.Context, name string) error {
	path := s.picture(name)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.viewer.WaitUpdates(ctx, settled); err != nil {
		return fmt.Errorf("waiting for the picture to settle: %w", err)
	}
	if err := os.MkdirAll(s.options.PictureDir, 0o755); err != nil {
		return fmt.Errorf("saving a screenshot: %w", err)
	}
	if err := s.viewer.SavePNG(path); err != nil {
		return err
	}
	s.say("What the user sees is saved in %s", path)
	return nil
}

// clear takes the lab down and looks whether anything is left of it.
func (s *show) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := s.lab.Down(ctx); err != nil {
		return fmt.Errorf("%w; podctl lab down tries again", err)
	}
	left, err := lab.Leftovers()
	if err != nil {
		return fmt.Errorf("looking for what the lab left behind: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("the lab left something behind; podctl lab down removes it:\n%s", strings.Join(left, "\n"))
	}
	s.say("The lab is down: no process, namespace, mount, cgroup or file of it is left.")
	return nil
}
