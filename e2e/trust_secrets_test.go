//go:build e2e

package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"podd/lab"
	"podd/trust"
)

// A token admits one, of the kind and name that it is for, in its time.
func TestTokens(t *testing.T) {
	config := t.TempDir()
	use := func(token string) result {
		t.Helper()
		cmd := theLab.CommandContext(bounded(t), lab.Client, filepath.Join(binDir, "podctl"), "context", "add", "tokens", "-")
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+config)
		cmd.Stdin = strings.NewReader(token)
		return run(t, cmd)
	}
	user := func(args ...string) string {
		return mustPodctl(t, append([]string{"cluster", "user-token", "tokens", "--role", "viewer"}, args...)...)
	}
	t.Cleanup(func() { podctl(t, "cluster", "user", "rm", "tokens") })

	token := user()
	requireResult(t, use(token), 0, []string{"user tokens (viewer)"}, "a token")
	requireResult(t, use(token), codeError, []string{"token"}, "a token for the second time")
	var listed []struct {
		ID, CreatedBy string
		Used          bool
	}
	parseJSON(t, mustPodctl(t, "cluster", "token", "ls", "-o", "json"), &listed)
	parsed, err := trust.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	used := false
	for _, l := range listed {
		used = used || l.ID == parsed.ID && l.Used && strings.HasPrefix(l.CreatedBy, "local root")
	}
	if !used {
		t.Errorf("the token %s is not listed as used: %+v", parsed.ID, listed)
	}

	deleted := user()
	if parsed, err = trust.ParseToken(deleted); err != nil {
		t.Fatal(err)
	}
	mustPodctl(t, "cluster", "token", "rm", parsed.ID)
	requireResult(t, use(deleted), codeError, []string{"token"}, "a token that was deleted")

	short := user("--lifetime", "1s")
	until(t, "the token's time is over", func() error {
		if list := mustPodctl(t, "cluster", "token", "ls", "-o", "name"); strings.Contains(list, mustParse(t, short).ID) {
			return errors.New("it is listed")
		}
		return nil
	})
	requireResult(t, use(short), codeError, []string{"token"}, "a token whose time is over")

	forged := mustParse(t, user())
	forged.Secret[0] ^= 1
	requireResult(t, use(forged.String()), codeError, []string{"token"}, "a token with another secret")
	other := mustParse(t, user())
	other.Fingerprint = strings.Repeat("0", 64)
	requireResult(t, use(other.String()), codeError, []string{"not of the cluster that the token is for"}, "a token of another cluster")

	requireResult(t, use(mustPodctl(t, "cluster", "join-token")), codeError, []string{"host"}, "a host's token for a user")
	for what, token := range map[string]string{
		"a user's token": user(), "a token for another name": mustPodctl(t, "cluster", "join-token", "--name", "e"),
		"a used token": token, "a proxy's token": mustPodctl(t, "cluster", "join-token", "--kind", "proxy"),
	} {
		dir := t.TempDir()
		file := workFile(t, "token", token, 0o600)
		r := runDaemon(t, "c", []string{filepath.Join(binDir, "podd"), "--name", "d", "--address", theLab.Address("c").String(),
			"--listen", theLab.Address("c").String() + ":7999", "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), "--join", "@" + file})
		unmountBelow(t, dir)
		requireResult(t, r, codeDaemon, []string{"podd: ", "token"}, "podd with "+what)
		if _, err := os.Stat(trust.Dir(filepath.Join(dir, "state"))); err == nil {
			t.Errorf("podd with %s has credentials", what)
		}
	}
}

func mustParse(t *testing.T, text string) trust.Token {
	t.Helper()
	token, err := trust.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// A host that was removed is refused everywhere with the certificate it has, and
// can come back with a token only.
func TestRemovedHost(t *testing.T) {
	p := newPodOn(t, "c", "", "--", "sleep", "inf")
	requireRefused(t, codeError, []string{"host c", "podd"}, "host", "rm", "--yes", "c")
	requireRefused(t, codeError, []string{"host nosuch", "podctl host ls"}, "host", "rm", "--yes", "nosuch")
	removed := openStore(t, "c")
	requireDirectory(t, removed)

	t.Cleanup(func() {
		if pid, err := theLab.PID("c"); err != nil || pid != 0 {
			return
		}
		if err := errors.Join(os.RemoveAll(trust.Dir(theLab.StateDir("c"))), theLab.Start(bounded(t), "c")); err != nil {
			t.Error(err)
		}
	})
	if err := theLab.Stop(bounded(t), "c"); err != nil {
		t.Fatal(err)
	}
	requireRefused(t, codeError, []string{"host c", p.name}, "host", "rm", "--yes", "c")
	if err := theLab.Start(bounded(t), "c"); err != nil {
		t.Fatalf("a restart without a token: %v", err)
	}
	p.remove()
	p.removed = true
	if err := theLab.Stop(bounded(t), "c"); err != nil {
		t.Fatal(err)
	}
	mustPodctl(t, "host", "rm", "--yes", "c")

	if hosts := mustPodctl(t, "host", "ls", "-o", "name"); strings.Contains(hosts, "c\n") {
		t.Errorf("the hosts are\n%s", hosts)
	}
	if members := mustPodctl(t, "cluster", "members", "-o", "name"); strings.Contains(members, "host/c\n") {
		t.Errorf("the members are\n%s", members)
	}
	requireRefusedEverywhere(t, "the host that was removed", removed.ClientTLS)
	err := theLab.Start(bounded(t), "c")
	if err == nil {
		t.Fatal("podd starts with a certificate that was revoked")
	}
	for _, word := range []string{"revoked", "host c"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("podd with a revoked certificate does not say %q, but\n%v", word, err)
		}
	}
	requireDirectory(t, openStore(t, "a"))

	if err := os.RemoveAll(trust.Dir(theLab.StateDir("c"))); err != nil {
		t.Fatal(err)
	}
	if err := theLab.Start(bounded(t), "c"); err != nil {
		t.Fatal(err)
	}
	back := newPod(t, "back", "--", "sleep", "inf")
	back.move("c")
	requireRefusedEverywhere(t, "the old certificate of the host that is back", removed.ClientTLS)
}

// Secrets are nowhere but in files that only their owner can open.
func TestSecrets(t *testing.T) {
	// A token that is used while it is looked, and one that waits.
	secrets := map[string]string{}
	for what, args := range map[string][]string{
		"a user's token": {"cluster", "user-token", "secrets", "--role", "viewer"}, "a host's token": {"cluster", "join-token"},
	} {
		token := mustParse(t, mustPodctl(t, args...))
		addSecret(secrets, what, token.Secret)
	}
	newRemoteUser(t, trust.RoleAdmin)
	p := newPod(t, "", "--", "sleep", "inf")
	p.move("b")
	for _, node := range theLab.Daemons() {
		dir := trust.Dir(theLab.StateDir(node))
		keys, err := filepath.Glob(filepath.Join(dir, "*key.pem"))
		if err != nil || len(keys) == 0 {
			t.Fatalf("%s has no key: %v", node, err)
		}
		for _, path := range keys {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(data)
			if block == nil {
				t.Fatalf("%s holds no key", path)
			}
			addSecret(secrets, path, block.Bytes[len(block.Bytes)-32:]) // RFC 8410: the key is what comes last
		}
		if data, err := os.ReadFile(filepath.Join(dir, "cluster.age")); err == nil {
			secrets["the key of "+node+"'s files"] = strings.TrimSpace(string(data))
		}
	}
	if len(secrets) < 3*(2+4)+2 {
		t.Fatalf("only %d secrets are known", len(secrets))
	}
	contains := func(data string) (what string, ok bool) {
		for what, secret := range secrets {
			if strings.Contains(data, secret) {
				return what, true
			}
		}
		return "", false
	}

	for _, node := range theLab.Daemons() {
		for _, dir := range []string{theLab.StateDir(node), theLab.RunDir(node)} {
			forEachFile(t, dir, func(path string, d fs.DirEntry) {
				info, err := d.Info()
				if err != nil || !info.Mode().IsRegular() || info.Size() > 64<<20 {
					return
				}
				data, err := os.ReadFile(path)
				if err != nil {
					return // gone
				}
				what, ok := contains(string(data))
				switch {
				case !ok && !strings.Contains(string(data), "PRIVATE KEY-----"):
				case info.Mode().Perm()&0o077 != 0:
					t.Errorf("%s has mode %v and holds %s", path, info.Mode(), what)
				case filepath.Dir(path) != trust.Dir(theLab.StateDir(node)):
					t.Errorf("%s holds %s", path, what)
				}
			})
			info, err := os.Stat(dir)
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, mode %v; want 0700", dir, err, info.Mode())
			}
		}
		info, err := os.Stat(trust.Dir(theLab.StateDir(node)))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the credentials of %s: %v, mode %v; want 0700", node, err, info.Mode())
		}
		if info, err := os.Stat(theLab.Socket(node)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket of %s: %v, mode %v; want 0600", node, err, info.Mode())
		}
		log, err := os.ReadFile(theLab.LogPath(node))
		if err != nil {
			t.Fatal(err)
		}
		if what, ok := contains(string(log)); ok || strings.Contains(string(log), "podd1.") {
			t.Errorf("the log of %s has %s", node, what)
		}
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		// A process that has ended meanwhile has none.
		data, _ := os.ReadFile(path)
		if what, ok := contains(string(data)); ok {
			t.Errorf("%s: %q has %s", path, data, what)
		}
	}
	for _, kv := range requireDirectory(t, openStore(t, "a")).Kvs {
		if what, ok := contains(string(kv.Key) + "\n" + string(kv.Value)); ok {
			t.Errorf("%s in the directory has %s: %q", kv.Key, what, kv.Value)
		}
	}
}

// addSecret adds the forms in which a secret may be found.
func addSecret(to map[string]string, what string, secret []byte) {
	to[what] = string(secret)
	to[what+" in hexadecimal"] = hex.EncodeToString(secret)
	to[what+" in base64"] = base64.RawStdEncoding.EncodeToString(secret)
	to[what+" in base64 for URLs"] = base64.RawURLEncoding.EncodeToString(secret)
}

// forEachFile walks a directory, but not into what is mounted there, nor into
// the files of pods.
func forEachFile(t *testing.T, dir string, f func(path string, d fs.DirEntry)) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	mounted := map[string]bool{filepath.Join(dir, "pods"): true}
	for _, m := range infos {
		mounted[m.Mountpoint] = true
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && mounted[path]:
			return fs.SkipDir
		case !d.IsDir():
			f(path, d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
