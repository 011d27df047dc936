//go:build e2e

package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"podd/lab"
	"podd/trust"
)

// directoryAddress is where the lab's directory is.
func directoryAddress() netip.AddrPort { return netip.AddrPortFrom(theLab.Address(lab.Proxy), 2379) }

// directoryURL is the same as daemons are told it.
func directoryURL() string { return "https://" + directoryAddress().String() }

// openStore reads the credentials of a node's daemon.
func openStore(t *testing.T, node string) *trust.Store {
	t.Helper()
	store, err := trust.Open(trust.Dir(theLab.StateDir(node)))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// admit gives a daemon with that state directory a certificate of the lab's
// cluster, in place of one that it may have. The directory knows nothing of it.
func admit(t *testing.T, stateDir string, identity trust.Identity) *trust.Store {
	t.Helper()
	issuer := openStore(t, lab.Proxy)
	return issue(t, trust.Dir(theLab.StateDir(lab.Proxy)), stateDir, identity, trust.Membership{
		Secret: issuer.Secret().String(), Info: trust.ClusterInfo{Directory: directoryURL(), Issuers: issuer.Info().Issuers},
	})
}

// issue makes credentials by the authority in a directory.
func issue(t *testing.T, authorityDir, stateDir string, identity trust.Identity, m trust.Membership) *trust.Store {
	t.Helper()
	authority, err := trust.LoadAuthority(authorityDir)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := trust.Open(authorityDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, m.Key, err = ed25519.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	request, err := trust.NewRequest(m.Key)
	if err != nil {
		t.Fatal(err)
	}
	if m.Chain, _, err = authority.Issue(request, trust.Profile{Identity: identity}); err != nil {
		t.Fatal(err)
	}
	m.Authority = issuer.AuthorityPEM()
	if err := os.RemoveAll(trust.Dir(stateDir)); err != nil {
		t.Fatal(err)
	}
	store, err := trust.Create(trust.Dir(stateDir), m)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// remoteUser is somebody at the client, who has a podctl and a certificate.
type remoteUser struct {
	t      *testing.T
	name   string
	config string
}

// newRemoteUser makes a user of the lab's cluster who is named after the test,
// as an admin would.
func newRemoteUser(t *testing.T, role trust.Role) *remoteUser {
	t.Helper()
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	u := &remoteUser{t: t, name: strings.Trim(notInNames.ReplaceAllString(name, "-"), "-") + "-" + string(role), config: t.TempDir()}
	token := workFile(t, "token", mustPodctl(t, "cluster", "user-token", u.name, "--role", string(role)), 0o600)
	if r := u.podctl("context", "add", "site", "@"+token); r.code != 0 {
		t.Fatalf("redeeming a token: exit code %d\n%s", r.code, r.stderr)
	}
	t.Cleanup(func() { podctl(t, "cluster", "user", "rm", u.name) })
	return u
}

func (u *remoteUser) String() string { return "user " + u.name }

// podctl runs podctl at the client, with the user's certificate.
func (u *remoteUser) podctl(args ...string) result {
	u.t.Helper()
	return run(u.t, u.command(args...))
}

func (u *remoteUser) command(args ...string) *exec.Cmd {
	u.t.Helper()
	program := filepath.Join(binDir, "podctl")
	argv := append([]string{"lab", "exec", lab.Client, "--", program, "--context", "site"}, args...)
	cmd := podctlCommand(bounded(u.t), "a", argv...)
	cmd.Env = append(os.Environ(), "PODCTL_HOST=", "PODCTL_CONTEXT=", "XDG_CONFIG_HOME="+u.config)
	return cmd
}

// must is podctl that has to succeed; it returns standard output.
func (u *remoteUser) must(args ...string) string {
	u.t.Helper()
	r := u.podctl(args...)
	if r.code != 0 {
		u.t.Fatalf("%s: podctl %s: exit code %d\n%s%s", u, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused fails the test unless podctl is refused, and says every word.
func (u *remoteUser) refused(words []string, args ...string) {
	u.t.Helper()
	requireResult(u.t, u.podctl(args...), codeError, words, u.String()+": podctl "+strings.Join(args, " "))
}

// store is the user's certificate.
func (u *remoteUser) store() *trust.Store {
	u.t.Helper()
	s, err := trust.Open(filepath.Join(u.config, "podctl", "credentials", "site"))
	if err != nil {
		u.t.Fatal(err)
	}
	return s
}

// requestTimeout bounds what is expected to be answered, or refused, at once.
const requestTimeout = 30 * time.Second

// tlsClient speaks HTTP over TLS from a node; where it connects to is up to the
// URL alone.
func tlsClient(node string, config *tls.Config) *http.Client {
	return &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		TLSClientConfig: config, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return theLab.Dial(ctx, node, network, address)
		},
	}}
}

// anonymous is a client's side without a certificate, which trusts whomever it
// meets.
func anonymous() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// fetch asks by GET and returns the status and the answer.
func fetch(client *http.Client, to netip.AddrPort, path string) (status int, body string, err error) {
	response, err := client.Get("https://" + to.String() + path)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}

// askDirectory reads all keys of the lab's directory from host a's network, with
// somebody's certificate.
func askDirectory(config *tls.Config) (*clientv3.GetResponse, error) {
	// The client of etcd tries for ever what fails in the handshake.
	if _, _, err := fetch(tlsClient("a", config.Clone()), directoryAddress(), "/version"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{directoryURL()}, TLS: config, Logger: zap.NewNop(), Context: ctx,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return theLab.Dial(ctx, "a", "tcp", address)
		})},
	})
	if err != nil {
		return nil, err
	}
	response, err := client.Get(ctx, "", clientv3.WithPrefix())
	return response, errors.Join(err, client.Close())
}

// requireDirectory fails the test unless the certificate opens the directory.
func requireDirectory(t *testing.T, store *trust.Store) *clientv3.GetResponse {
	t.Helper()
	response, err := askDirectory(store.ClientTLS(trust.DirectoryName))
	if err != nil || len(response.Kvs) == 0 {
		t.Fatalf("%s does not get at the directory: %v", store.Identity(), err)
	}
	return response
}

// admittedBy lists the daemons of the lab that run and answer this end of a
// connection, the directory among them.
func admittedBy(config func(serverName string) *tls.Config) (admitted []string) {
	for _, node := range theLab.Daemons() {
		if pid, err := theLab.PID(node); err != nil || pid == 0 {
			continue
		}
		client := tlsClient("a", config(trust.DaemonName))
		response, err := client.Post(fmt.Sprintf("https://%s/podd.v1.HostService/ListHosts", theLab.API(node)), "application/json", strings.NewReader("{}"))
		if err != nil {
			continue // already when it connects
		}
		response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			admitted = append(admitted, fmt.Sprintf("the daemon of %s: %s", node, response.Status))
		}
	}
	if response, err := askDirectory(config(trust.DirectoryName)); err == nil {
		admitted = append(admitted, fmt.Sprintf("the directory: %d keys", len(response.Kvs)))
	}
	return admitted
}

// requireRefusedEverywhere waits until nobody admits this end of a connection
// any more: daemons hear of a revocation one by one.
func requireRefusedEverywhere(t *testing.T, who string, config func(serverName string) *tls.Config) {
	t.Helper()
	until(t, "everybody refuses "+who, func() error {
		if admitted := admittedBy(config); len(admitted) > 0 {
			return fmt.Errorf("admitted by %v", admitted)
		}
		return nil
	})
}
