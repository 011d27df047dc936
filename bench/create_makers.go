package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"podd/bench/peer"
	"podd/lab"
)

// poddHost is podd with the image that is the default.
const poddHost = "podd, image host"

// createHost is where all servers are made.
const createHost = "a"

// podMaker makes pods by podctl.
type podMaker struct {
	*creator
	image string
}

func (m *podMaker) name() string {
	if m.image == "host" {
		return poddHost
	}
	return podd
}

func (*podMaker) prepare(context.Context, string, uint16) error { return nil }

func (m *podMaker) run(ctx context.Context, id string, _ uint16) error {
	program := "/traffic"
	if m.image == "host" {
		program = filepath.Join(m.root, "traffic")
	}
	_, err := m.podctl(ctx, "run", "-d", "--name", id, "--image", m.image, "--", program)
	return err
}

// address asks the proxy's name server, as clients do.
func (m *podMaker) address(ctx context.Context, id string, port uint16) (netip.AddrPort, error) {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return m.lab.Dial(ctx, lab.Client, network, net.JoinHostPort(m.lab.Address(lab.Proxy).String(), "53"))
	}}
	found, err := resolver.LookupNetIP(ctx, "ip4", id+"."+lab.Zone+".")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("looking for the pod: %w", err)
	}
	return netip.AddrPortFrom(found[0].Unmap(), port), nil
}

func (m *podMaker) remove(ctx context.Context, ids ...string) error {
	_, err := m.podctl(ctx, append([]string{"rm", "--force"}, ids...)...)
	if err == nil || !strings.Contains(err.Error(), "not found") {
		return err
	}
	// Those after one that was never made are still there.
	var errs []error
	for _, id := range ids {
		if _, err := m.podctl(ctx, "rm", "--force", id); err != nil && !strings.Contains(err.Error(), "not found") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m *podMaker) daemons() ([]int, error) {
	var pids []int
	for _, node := range []string{createHost, lab.Proxy} {
		pid, err := m.lab.PID(node)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (m *podMaker) parent() string { return m.lab.CgroupParent(createHost) }

// The cgroups of peers; the lab's end removes those that begin like this.
const peerCgroup = "podd-lab-create"

// runcMaker makes containers by `runc run`, as `runc spec` describes them, in
// the network namespace of the host.
type runcMaker struct{ *creator }

func (*runcMaker) name() string { return runc }

func (m *runcMaker) bundle(id string) string { return filepath.Join(m.dir, "runc", id) }

func (m *runcMaker) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, m.runc(), append([]string{"--root", filepath.Join(m.dir, "runc-state")}, args...)...)
}

func (m *runcMaker) run(ctx context.Context, id string, _ uint16) error {
	return quiet(m.command(ctx, "run", "--detach", "--bundle", m.bundle(id), id))
}

// prepare writes a bundle.
func (m *runcMaker) prepare(_ context.Context, id string, port uint16) error {
	spec := specconv.Example()
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/traffic", strconv.Itoa(int(port))}
	spec.Root = &specs.Root{Path: m.root}
	spec.Linux.CgroupsPath = "/" + peerCgroup + "/" + id
	for i := range spec.Linux.Namespaces {
		if n := &spec.Linux.Namespaces[i]; n.Type == specs.NetworkNamespace {
			n.Path = m.lab.Namespace(createHost)
		}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	if err := os.MkdirAll(m.bundle(id), 0o700); err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.bundle(id), "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	return nil
}

func (m *runcMaker) address(_ context.Context, _ string, port uint16) (netip.AddrPort, error) {
	return netip.AddrPortFrom(m.lab.Address(createHost), port), nil
}

func (m *runcMaker) remove(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if err := quiet(m.command(ctx, "delete", "--force", id)); err != nil {
			return err
		}
	}
	return nil
}

func (*runcMaker) daemons() ([]int, error) { return nil, nil }

func (*runcMaker) parent() string { return peerCgroup }

// podmanMaker makes containers by `podman run`, in the network namespace of
// the host.
type podmanMaker struct {
	*creator
	runtime string
}

func (*podmanMaker) name() string { return podman }

const podmanImage = "localhost/bench-create"

func (m *podmanMaker) command(ctx context.Context, args ...string) *exec.Cmd {
	dir := filepath.Join(m.dir, "podman")
	return exec.CommandContext(ctx, "podman", append([]string{
		"--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--tmpdir", filepath.Join(dir, "tmp"),
		// Debian's crun refuses machines that have both versions of cgroups.
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", m.runtime,
	}, args...)...)
}

// prepare makes an image of the root file system.
func (m *podmanMaker) prepare(ctx context.Context, _ string, _ uint16) error {
	if quiet(m.command(ctx, "image", "exists", podmanImage)) == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(m.dir, "podman", "tmp"), 0o700); err != nil {
		return fmt.Errorf("making podman's directories: %w", err)
	}
	archive := filepath.Join(m.dir, "podman", "root.tar")
	if err := quiet(exec.CommandContext(ctx, "tar", "-C", m.root, "-cf", archive, ".")); err != nil {
		return err
	}
	return quiet(m.command(ctx, "import", archive, podmanImage))
}

func (m *podmanMaker) run(ctx context.Context, id string, port uint16) error {
	return quiet(m.command(ctx, slices.Concat(
		[]string{"run", "--detach", "--name", id, "--network", "ns:" + m.lab.Namespace(createHost), "--cgroup-parent", "/" + peerCgroup, "--log-driver", "none"},
		peer.PodmanLimits, []string{podmanImage, "/traffic", strconv.Itoa(int(port))})...))
}

func (m *podmanMaker) address(_ context.Context, _ string, port uint16) (netip.AddrPort, error) {
	return netip.AddrPortFrom(m.lab.Address(createHost), port), nil
}

func (m *podmanMaker) remove(ctx context.Context, ids ...string) error {
	return quiet(m.command(ctx, append([]string{"rm", "--force", "--ignore", "--time", "0"}, ids...)...))
}

func (*podmanMaker) daemons() ([]int, error) { return nil, nil }

func (*podmanMaker) parent() string { return peerCgroup }

// quiet runs a command to its end; the error has what it wrote. Its output goes
// to a file: a container that is left running would keep a pipe open.
func quiet(cmd *exec.Cmd) error {
	file, err := os.CreateTemp("", "podd-bench-")
	if err != nil {
		return fmt.Errorf("running %s: %w", cmd.Path, err)
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return fmt.Errorf("running %s: %w", cmd.Path, err)
	}
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Run(); err != nil {
		text := make([]byte, 2048)
		n, _ := file.ReadAt(text, 0) // less than that is no error that matters
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(text[:n])))
	}
	return nil
}
