// Command loadgen runs the checking clients of package workload, and their servers, from
// a command line: in the client's namespace of a lab, or inside a pod. It prints
// "started" at the first sign of life and a JSON result at the end.
//
//	loadgen redis -address HOST:PORT
//	loadgen download -url URL -rate BYTES -sha256 HEX
//	loadgen keepalive -url URL -connections N
//	loadgen idle -url URL -connections N
//	loadgen udp -address HOST:PORT
//	loadgen tcp -address HOST:PORT -rate BYTES
//	loadgen vnc -address HOST:PORT -png FILE
//	loadgen serve-udp -listen ADDRESS:PORT
//	loadgen serve-tcp -listen ADDRESS:PORT -rate BYTES
//
// SIGINT and SIGTERM end it in good order; SIGUSR1 prints "lap D", the longest
// silence since the last one. It exits with 1 if anything was wrong.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"podd/e2e/workload"
	"podd/e2e/workload/vncclient"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: loadgen redis|download|keepalive|idle|udp|tcp|vnc|serve-udp|serve-tcp [flags]")

// client is what the workload's clients have in common.
type client interface {
	Run(context.Context) error
	Stop()
	Started() <-chan struct{}
	Lap() time.Duration
}

type options struct {
	address, url, sha256, listen, png string
	connections                       int
	rate                              int64
	seed                              uint64
	interval, duration                time.Duration
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&o.address, "address", "", "`host:port` of the server")
	flags.StringVar(&o.url, "url", "", "what to get")
	flags.StringVar(&o.sha256, "sha256", "", "the content's digest in hexadecimal")
	flags.StringVar(&o.listen, "listen", "", "`address:port` to serve at")
	flags.StringVar(&o.png, "png", "", "`file` for the last picture")
	flags.IntVar(&o.connections, "connections", 1, "how many")
	flags.Int64Var(&o.rate, "rate", 1<<20, "bytes per second")
	flags.Uint64Var(&o.seed, "seed", uint64(os.Getpid()), "of the pseudo-random stream")
	flags.DurationVar(&o.interval, "interval", 0, "between two requests")
	flags.DurationVar(&o.duration, "duration", 0, "how long to run; 0 means until a signal")
	if err := flags.Parse(args[1:]); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	lap := make(chan os.Signal, 1)
	signal.Notify(lap, syscall.SIGUSR1)

	switch args[0] {
	case "redis":
		c := workload.NewRedis(workload.RedisConfig{Address: o.address, Interval: o.interval})
		return errors.Join(drive(c, o, stop, lap, func() any { return c.Result() }), c.Verify(context.Background()))
	case "download":
		c := workload.NewDownload(workload.DownloadConfig{URL: o.url, Rate: o.rate, SHA256: o.sha256})
		return drive(c, o, stop, lap, func() any { return c.Result() })
	case "keepalive":
		c := workload.NewKeepAlive(workload.KeepAliveConfig{URL: o.url, Connections: o.connections, Interval: o.interval})
		return drive(c, o, stop, lap, func() any { return c.Result() })
	case "idle":
		return idle(o, stop)
	case "udp":
		c := workload.NewUDP(workload.UDPConfig{Address: o.address, Interval: o.interval})
		return drive(c, o, stop, lap, func() any { return c.Result() })
	case "tcp":
		c := workload.NewTCP(workload.TCPConfig{Address: o.address, Rate: o.rate, Seed: o.seed})
		return drive(c, o, stop, lap, func() any { return c.Result() })
	case "vnc":
		return vnc(o, stop, lap)
	case "serve-udp", "serve-tcp":
		return serve(args[0], o, stop)
	}
	return errUsage
}

// drive runs c until a signal or for the duration asked for.
func drive(c client, o options, stop, lap <-chan os.Signal, result func() any) error {
	done := make(chan error, 1)
	go func() { done <- c.Run(context.Background()) }()
	var end <-chan time.Time
	if o.duration > 0 {
		end = time.After(o.duration)
	}
	started := c.Started()
	for {
		select {
		case <-started:
			fmt.Println("started")
			started = nil
		case <-lap:
			fmt.Println("lap", c.Lap())
		case <-stop:
			c.Stop()
		case <-end:
			c.Stop()
		case err := <-done:
			return errors.Join(err, json.NewEncoder(os.Stdout).Encode(result()))
		}
	}
}

// vnc watches a desktop. Its pictures come as fast as the screen changes.
func vnc(o options, stop, lap <-chan os.Signal) error {
	ctx := context.Background()
	conn, err := net.Dial("tcp", o.address)
	if err != nil {
		return err
	}
	viewer, err := vncclient.Connect(ctx, conn)
	if err != nil {
		return err
	}
	fmt.Println("started")
	ended := make(chan error, 1)
	go func() { ended <- viewer.Wait(ctx, func(vncclient.Stats) bool { return false }) }()
	var end <-chan time.Time
	if o.duration > 0 {
		end = time.After(o.duration)
	}
	for running := true; running; {
		select {
		case <-lap:
			fmt.Println("lap", viewer.Stats().Silence)
			viewer.ResetSilence()
		case err = <-ended:
			running = false
		case <-stop:
			running = false
		case <-end:
			running = false
		}
	}
	if o.png != "" {
		err = errors.Join(err, viewer.SavePNG(o.png))
	}
	return errors.Join(err, viewer.Close(), json.NewEncoder(os.Stdout).Encode(viewer.Stats()))
}

func idle(o options, stop <-chan os.Signal) error {
	ctx := context.Background()
	conns, err := workload.OpenIdle(ctx, nil, o.url, o.connections)
	if err != nil {
		return err
	}
	defer conns.Close()
	fmt.Println("started")
	var end <-chan time.Time
	if o.duration > 0 {
		end = time.After(o.duration)
	}
	select {
	case <-stop:
	case <-end:
	}
	alive, err := conns.Check(ctx)
	result := struct {
		Connections int `json:"connections"`
		Alive       int `json:"alive"`
	}{o.connections, alive}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(result))
}

// serve runs a server until a signal. The TCP listener is Go's default one,
// which is an MPTCP socket where the kernel has them.
func serve(kind string, o options, stop <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	if kind == "serve-udp" {
		conn, err := net.ListenPacket("udp", o.listen)
		if err != nil {
			return err
		}
		fmt.Println("started")
		return workload.ServeUDP(ctx, conn)
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	fmt.Println("started")
	failed := make(chan error, 1)
	err = workload.ServeTCP(ctx, l, o.rate, func(err error) {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		select {
		case failed <- err:
		default:
		}
	})
	select {
	case first := <-failed:
		return errors.Join(err, first)
	default:
		return err
	}
}
