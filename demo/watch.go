package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"podd/e2e/workload/vncclient"
	"podd/lab"
)

// connect makes the viewer's one connection, from the client node through the
// proxy, as soon as the desktop listens.
func (s *show) connect(ctx context.Context, public netip.Addr) error {
	address := netip.AddrPortFrom(public, DesktopPort).String()
	err := retry(ctx, func() error {
		conn, err := s.lab.Dial(ctx, lab.Client, "tcp", address)
		if err != nil {
			return err
		}
		s.viewer, err = vncclient.Connect(ctx, conn)
		return err
	})
	if err != nil {
		return fmt.Errorf("connecting a viewer to the desktop at %s: %w\n%s", address, err, s.epitaph())
	}
	return nil
}

// diary is the file of the user's that the demo writes by typing.
const diary = DesktopHome + "/diary"

// findTerminal gives the terminal the keyboard and waits until its shell
// answers. A click takes its time until the window manager has acted on it, and
// what was typed before that goes elsewhere, so it is done until it works.
func (s *show) findTerminal(ctx context.Context) error {
	const x, y = 200, 200 // in the terminal's window
	err := retry(ctx, func() error {
		if err := errors.Join(s.viewer.Click(x, y), s.viewer.WaitUpdates(ctx, 10), s.viewer.Type("clear; >diary\n")); err != nil {
			return err
		}
		if err := s.viewer.WaitUpdates(ctx, 10); err != nil {
			return err
		}
		_, err := s.podctl(ctx, "exec", podName, "--", "test", "-e", diary)
		return err
	})
	if err != nil {
		return fmt.Errorf("typing into the desktop's terminal: %w", err)
	}
	return nil
}

// write types a command that makes the terminal's shell add a line to the
// diary, and returns that line as it is read back.
func (s *show) write(ctx context.Context, command string) (string, error) {
	before, err := s.readDiary(ctx)
	if err != nil {
		return "", err
	}
	if err := s.viewer.Type(command + " | tee -a diary\n"); err != nil {
		return "", err
	}
	var line string
	err = retry(ctx, func() error {
		lines, err := s.readDiary(ctx)
		if err == nil && len(lines) != len(before)+1 {
			err = fmt.Errorf("it has %d lines after %d", len(lines), len(before))
		}
		if err == nil {
			line = lines[len(before)]
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("waiting for what was typed into the terminal to reach the diary: %w", err)
	}
	return line, nil
}

func (s *show) readDiary(ctx context.Context) ([]string, error) {
	out, err := s.podctl(ctx, "exec", podName, "--", "cat", diary)
	return strings.Split(out, "\n")[:strings.Count(out, "\n")], err
}

// resolve asks the proxy's name server for the pod's address, as a client does.
func (s *show) resolve(ctx context.Context) (netip.Addr, error) {
	server := net.JoinHostPort(s.lab.Address(lab.Proxy).String(), "53")
	conn, err := s.lab.Dial(ctx, lab.Client, "udp", server)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking the name server %s: %w", server, err)
	}
	defer conn.Close()
	question := new(dns.Msg).SetQuestion(domain+".", dns.TypeA)
	client := dns.Client{Timeout: patience}
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking the name server %s for %s: %w", server, domain, err)
	}
	for _, record := range answer.Answer {
		if a, ok := record.(*dns.A); ok {
			if address, ok := netip.AddrFromSlice(a.A.To4()); ok {
				return address, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("asking the name server %s for %s: no address, status %s", server, domain, dns.RcodeToString[answer.Rcode])
}

// retry calls try until it succeeds, for as long as a slow machine may need.
func retry(ctx context.Context, try func() error) error {
	const pause = 20 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); cause != context.DeadlineExceeded {
				return cause
			}
			return err
		case <-time.After(pause):
		}
	}
}
