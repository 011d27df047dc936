package trust

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"podd/pod"
)

func newToken(t testing.TB, s *Store) Token {
	t.Helper()
	token, err := s.NewToken([]string{"10.10.0.2:7444", "[fd00::1]:7444"})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestToken(t *testing.T) {
	token := newToken(t, newCluster(t))
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, argument := range []string{token.String(), "@" + file, "-", " " + token.String() + "\n"} {
		got, err := ReadToken(argument, strings.NewReader(token.String()+"\n"))
		if err != nil || !reflect.DeepEqual(got, token) {
			t.Errorf("%q: %+v, %v", argument, got, err)
		}
	}
	if _, err := ReadToken("@"+file+"x", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestBadToken(t *testing.T) {
	good := newToken(t, newCluster(t)).String()
	for _, text := range []string{
		"", "podd1.", good[:len(good)-4], good + "AAAA", strings.ToUpper(good), "podd2." + good[6:],
		Token{}.String(), tokenPrefix + strings.Repeat("A", maxToken),
	} {
		_, err := ParseToken(text)
		if !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%.20q: %v", text, err)
		}
		if len(text) > 20 && err != nil && strings.Contains(err.Error(), text[8:20]) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

// TestTokenPinsCluster: the joiner talks only to the cluster that made the token.
func TestTokenPinsCluster(t *testing.T) {
	proxy, other := newCluster(t), newCluster(t)
	token := newToken(t, proxy)
	_, err := handshake(t, proxy.ServerTLS(), token.TLS(), proxy)
	if !errors.Is(err, pod.ErrUnknownCaller) || errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("the right cluster: %v", err)
	}
	if _, err := handshake(t, other.ServerTLS(), token.TLS(), other); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("another cluster: %v", err)
	}
	// A user knows the authority's certificate, too, and shows it.
	user := join(t, proxy, jane, 0)
	if _, err := handshake(t, user.ServerTLS(), token.TLS(), user); !errors.Is(err, pod.ErrUntrusted) {
		t.Errorf("a user that plays a daemon: %v", err)
	}
	if !token.Matches(proxy.AuthorityPEM()) || token.Matches(other.AuthorityPEM()) || token.Matches(nil) {
		t.Error("the authority is not told from another")
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(newToken(f, newCluster(f)).String())
	f.Add("podd1.e30")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		again, err := ParseToken(token.String())
		if err != nil || !bytes.Equal(again.Secret, token.Secret) {
			t.Fatalf("%q is not read back: %v", token, err)
		}
	})
}

func FuzzParseChain(f *testing.F) {
	f.Add(newCluster(f).Chain())
	s := newCluster(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := s.VerifyChain(data, s.Leaf().NotAfter); err == nil && !bytes.Contains(data, []byte("CERTIFICATE")) {
			t.Fatal("something else was taken for a certificate")
		}
	})
}
