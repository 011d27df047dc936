//go:build root

package namespace

import (
	"strings"
	"testing"
)

func TestExitStatus(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	for _, test := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0}, {"exit 3", 3}, {"kill -TERM $$", 143}, {"kill -KILL $$", 137},
	} {
		if code, _, stderr := sh(t, r, test.script); code != test.want {
			t.Errorf("%q ended with %d, want %d; it said %q", test.script, code, test.want, stderr)
		}
	}
}

func TestUser(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	code, out, stderr := sh(t, r, "id; echo $HOME; pwd; umask; cat /proc/self/status | grep -E '^(Cap|NoNew|Seccomp)'; cat /proc/self/mountinfo; ls -la / /dev; cat /etc/hosts /etc/resolv.conf; hostname; ps ax")
	t.Log(code, out, stderr)
	code, out, stderr = sh(t, r, "id; ls -la /.podd", asUser("1000"))
	t.Log(code, out, stderr)
	if !strings.Contains(out, "uid=1000") {
		t.Error("not the user asked for")
	}
}
