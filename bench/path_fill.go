package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"podd/bench/measure"
	"podd/daemon"
	"podd/lab"
	"podd/pod"
	"podd/trust"
)

// fillerVariable makes this program a filler, with the credentials in the
// directory that it names.
const fillerVariable = "PODD_BENCH_FILLER"

// absentHost is what the pods of a filler are on. Its address is nobody's.
var absentHost = pod.Host{Name: "absent", Physical: netip.MustParseAddr("10.10.1.250"), API: netip.MustParseAddrPort("10.10.1.250:7443"), CPUs: 1, MemoryBytes: 1 << 30}

// fill writes the records of pods into the directory: for each line of standard
// input, a number, it sees to it that there are so many and answers "ok". It
// runs in the network of a host, with that host's credentials.
func fill(credentials string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	store, err := trust.Open(credentials)
	if err != nil {
		return err
	}
	d, err := daemon.OpenDirectory(ctx, daemon.DirectoryOptions{Credentials: store, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	registration, err := d.RegisterHost(ctx, absentHost)
	if err != nil {
		return errors.Join(err, d.Close())
	}
	count := 0
	lines := bufio.NewScanner(os.Stdin)
	for err == nil && lines.Scan() {
		wanted, parseErr := strconv.Atoi(lines.Text())
		if parseErr != nil {
			err = fmt.Errorf("filling the directory: %w", parseErr)
			break
		}
		for ; err == nil && count < wanted; count++ {
			err = fillOne(ctx, d, fmt.Sprintf("fill-%d", count))
		}
		if err == nil {
			_, err = fmt.Println("ok")
		}
	}
	return errors.Join(err, lines.Err(), registration.Close(), d.Close())
}

// fillOne makes one record. Ten thousand writes in a row may wait for a disk now
// and then for longer than a client of the directory does.
func fillOne(ctx context.Context, d *daemon.Directory, name string) (err error) {
	const tries = 5
	for range tries {
		_, err = d.CreatePod(ctx, pod.Spec{Name: name, Image: "host", Command: []string{"true"}}, absentHost.Name)
		if errors.Is(err, pod.ErrExists) {
			return nil // made by an attempt that seemed to have failed
		}
		if !errors.Is(err, pod.ErrUnavailable) {
			break
		}
	}
	return err
}

// filler is a running filler.
type filler struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers *bufio.Reader
	count   int
}

func startFiller(ctx context.Context, l *lab.Lab) (*filler, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting the filler: %w", err)
	}
	f := &filler{cmd: l.CommandContext(ctx, sides[0], self)}
	f.cmd.Env = append(os.Environ(), fillerVariable+"="+trust.Dir(l.StateDir(sides[0])))
	f.cmd.Stderr = os.Stderr
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("starting the filler: %w", err)
	}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the filler: %w", err)
	}
	f.answers = bufio.NewReader(stdout)
	if err := f.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the filler: %w", err)
	}
	return f, nil
}

// fill sees to it that there are so many pods beside the real one.
func (f *filler) fill(n int) error {
	if _, err := fmt.Fprintln(f.stdin, n); err != nil {
		return fmt.Errorf("filling the directory: %w", err)
	}
	if _, err := f.answers.ReadString('\n'); err != nil {
		return fmt.Errorf("filling the directory: the filler has ended: %w", err)
	}
	f.count = n
	return nil
}

func (f *filler) close() error {
	if err := errors.Join(f.stdin.Close(), f.cmd.Wait()); err != nil {
		return fmt.Errorf("ending the filler: %w", err)
	}
	return nil
}

// fill sees to it that the proxy knows so many pods.
func (p *pather) fill(ctx context.Context, n int) error {
	begin, had := time.Now(), p.filler.count
	before, err := memoryInfo()
	if err != nil {
		return err
	}
	if err := p.filler.fill(max(n-1, had)); err != nil {
		return err
	}
	if _, err := p.awaitPods(ctx, p.filler.count+1); err != nil {
		return err
	}
	after, err := memoryInfo()
	if err != nil {
		return err
	}
	if added := p.filler.count - had; added > 500 { // fewer are lost in the noise
		p.record.Add(measure.Key{Work: sizeName(n), Contender: podd, Figure: kernelLabel}, (after.kernel()-before.kernel())/float64(added))
	}
	p.log.Info("the proxy knows the pods", "pods", p.filler.count+1, "took", time.Since(begin).Round(time.Second))
	return nil
}

// bringIn measures how long podproxy takes for one more pod.
func (p *pather) bringIn(ctx context.Context) (measure.Values, error) {
	const sum, count = "podproxy_directory_follow_seconds_sum", "podproxy_directory_follow_seconds_count"
	before, err := p.awaitPods(ctx, p.filler.count+1)
	if err != nil {
		return nil, err
	}
	if err := p.filler.fill(p.filler.count + 1); err != nil {
		return nil, err
	}
	after, err := p.awaitPods(ctx, p.filler.count+1)
	if err != nil {
		return nil, err
	}
	if after[count] == before[count] {
		return nil, errors.New("podproxy has not followed the directory")
	}
	return measure.Values{bringIn: 1000 * (after[sum] - before[sum]) / (after[count] - before[count])}, nil
}

// awaitPods waits until podproxy has so many pods, and is quiet, and returns
// its metrics.
func (p *pather) awaitPods(ctx context.Context, n int) (map[string]float64, error) {
	const limit, pause = 3 * time.Minute, 20 * time.Millisecond
	const count = "podproxy_directory_follow_seconds_count"
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for last := -1.0; ; {
		metrics, err := p.proxyMetrics(ctx)
		if err != nil {
			return nil, err
		}
		if metrics["podproxy_pods"] == float64(n) && metrics[count] == last {
			return metrics, nil
		}
		last = metrics[count]
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for podproxy to know %d pods: it knows %v", n, metrics["podproxy_pods"])
		case <-time.After(pause):
		}
	}
}

// proxyMetrics reads podproxy's metrics that have no labels.
func (p *pather) proxyMetrics(ctx context.Context) (map[string]float64, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.lab.Socket(lab.Proxy))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podproxy/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("reading podproxy's metrics: %w", err)
	}
	defer response.Body.Close()
	metrics := map[string]float64{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil && !strings.HasPrefix(name, "#") {
			metrics[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading podproxy's metrics: %w", err)
	}
	return metrics, nil
}

// memoryOf notes what the daemons need with so many pods.
func (p *pather) memoryOf(n int) error {
	note := func(figure string, value float64) {
		p.record.Add(measure.Key{Work: sizeName(n), Contender: podd, Figure: figure}, value)
	}
	for figure, node := range map[string]string{proxyMemory: lab.Proxy, followerMem: sides[1]} {
		pid, err := p.lab.PID(node)
		if err != nil {
			return err
		}
		size, err := proportional(pid)
		if err != nil {
			return err
		}
		note(figure, size)
	}
	file, err := os.Stat(filepath.Join(p.lab.StateDir(lab.Proxy), "directory", "etcd", "member", "snap", "db"))
	if err != nil {
		return fmt.Errorf("looking at the directory's file: %w", err)
	}
	note(database, float64(file.Size()))
	return nil
}
