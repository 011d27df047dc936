package cli_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podd/cli"
	"podd/trust"
)

// A certificate is renewed by whatever command is given when half of its life
// is over, and not before.
func TestRenewal(t *testing.T) {
	s, socket := newServer(t)
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	podctl := func(args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if code := cli.Run(context.Background(), args, nil, &stdout, &stderr); code != 0 {
			t.Fatalf("podctl %v: exit code %d: %s", args, code, &stderr)
		}
		return stdout.String()
	}
	token := filepath.Join(t.TempDir(), "token")
	text := podctl("--socket", socket, "cluster", "user-token", "jane", "--role", "viewer")
	if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	podctl("context", "add", "site", "@"+token)
	podctl("--context", "site", "ps")
	if s.renewals() != 0 {
		t.Fatal("a new certificate was renewed")
	}
	dir := filepath.Join(config, "podctl", "credentials", "site")
	before := ageCertificate(t, dir, filepath.Join(filepath.Dir(socket), "cluster", "trust"))
	podctl("--context", "site", "ps")
	if s.renewals() != 1 {
		t.Fatalf("an old certificate was renewed %d times, want once", s.renewals())
	}
	store, err := trust.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if end := store.Leaf().NotAfter; !end.After(before) {
		t.Errorf("the certificate ends at %s as before", end)
	}
	if got := store.Identity().String(); got != "user jane (viewer)" {
		t.Errorf("it is now %s's", got)
	}
	podctl("--context", "site", "ps")
	if s.renewals() != 1 {
		t.Error("it was renewed again at once")
	}
}

// A token on the command line can't be read there by others while it is used.
func TestTokenIsNotShown(t *testing.T) {
	s, _ := newServer(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	token, err := s.trust.store.NewToken([]string{listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	podctl := exec.CommandContext(ctx, "podctl", "context", "add", "site", token.String())
	podctl.Env = append(os.Environ(), "XDG_CONFIG_HOME="+t.TempDir(), quickRaceExit)
	var stderr bytes.Buffer
	podctl.Stderr = &stderr
	if err := podctl.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	shown, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", podctl.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if podctl.Wait() == nil {
		t.Error("a server that hangs up was enough to join")
	}
	if !strings.Contains(string(shown), "site\x00xxx") || strings.Contains(string(shown), "podd1") {
		t.Errorf("the arguments are shown as %q", shown)
	}
	if out := stderr.String(); !strings.Contains(out, "adding a context: unavailable") || strings.Contains(out, "http://podd") || strings.Contains(out, "podd1") {
		t.Errorf("it says %q", out)
	}
}

func TestRemovingAHostIsConfirmed(t *testing.T) {
	s, socket := newServer(t)
	for _, test := range []struct {
		answer string
		code   int
	}{{"\n", 125}, {"no\n", 125}, {"y\n", 0}} {
		o := startOnTerminal(t, "--socket", socket, "host", "rm", "odd")
		o.expect("Forget odd and revoke its certificate? [y/N] ")
		if s.isRemoved("odd") {
			t.Fatalf("it was removed before an answer")
		}
		if _, err := o.master.Write([]byte(test.answer)); err != nil {
			t.Fatal(err)
		}
		o.finish(test.code)
	}
	if !s.isRemoved("odd") {
		t.Error("it was not removed after all")
	}
}

// ageCertificate replaces the certificate in dir by one that was issued three
// weeks ago, and returns its end.
func ageCertificate(t *testing.T, dir, authorityDir string) time.Time {
	t.Helper()
	store, err := trust.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(authorityDir, "authority-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(store.AuthorityPEM())
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	template := *store.Leaf()
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-21*24*time.Hour), time.Now().Add(9*24*time.Hour).Truncate(time.Second)
	der, err := x509.CreateCertificate(rand.Reader, &template, authority, store.Key().Public().(ed25519.PublicKey), key)
	if err != nil {
		t.Fatal(err)
	}
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), store.AuthorityPEM()...)
	if err := store.Replace(chain); err != nil {
		t.Fatal(err)
	}
	return template.NotAfter
}
