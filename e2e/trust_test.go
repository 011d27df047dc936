//go:build e2e

package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	poddv1 "podd/api/podd/v1"
	"podd/lab"
	"podd/trust"
)

// Users at the client may do what their role says, and hear so when they may
// not.
func TestRoles(t *testing.T) {
	p := newShell(t, "", counter)
	viewer, operator, admin := newRemoteUser(t, trust.RoleViewer), newRemoteUser(t, trust.RoleOperator), newRemoteUser(t, trust.RoleAdmin)

	for _, u := range []*remoteUser{viewer, operator, admin} {
		var status struct{ You, Role, Fingerprint string }
		parseJSON(t, u.must("cluster", "status", "-o", "json"), &status)
		if role := string(u.store().Identity().Role); status.Role != role || !strings.Contains(status.You, u.name) || status.Fingerprint != u.store().Fingerprint() {
			t.Errorf("%s has the status %+v", u, status)
		}
		if !strings.Contains(u.must("ps", "-o", "name"), p.name+"\n") {
			t.Errorf("%s does not see the pod", u)
		}
		u.must("inspect", p.name)
		u.must("host", "ls")
		u.must("move", "--dry-run", p.name, "b")
	}
	denied := func(u *remoteUser, role string) []string {
		return []string{"permission denied", u.name, "the role " + role}
	}
	for _, args := range [][]string{
		{"run", "-d", "--name", "roles-viewer", "--", "sleep", "inf"}, {"move", p.name, "b"}, {"exec", p.name, "--", "id"}, {"exec", "-i", p.name, "--", "sh"},
		{"attach", p.name}, {"stop", p.name}, {"kill", p.name}, {"rm", "-f", p.name}, {"logs", p.name},
	} {
		viewer.refused(denied(viewer, "operator"), args...)
	}
	for _, args := range [][]string{
		{"cluster", "join-token"}, {"cluster", "user-token", "eve", "--role", "admin"}, {"cluster", "user", "rm", admin.name},
		{"cluster", "token", "rm", "aaaaaaaa"}, {"host", "rm", "--yes", "c"},
		{"run", "-d", "--name", "roles-operator", "-v", "/etc:/mnt:share", "--", "sleep", "inf"},
		{"run", "-d", "--name", "roles-operator", "--image", "dir:/", "--", "sleep", "inf"},
	} {
		viewer.refused([]string{"permission denied"}, args...)
		operator.refused(denied(operator, "admin"), args...)
	}

	if v := p.inspect(); v.Host != "a" || v.Epoch != 1 {
		t.Fatalf("the pod is %+v; nobody may have touched it", v)
	}
	operator.must("move", p.name, "b")
	if v := p.inspect(); v.Host != "b" {
		t.Errorf("after the operator's move the pod is on %s", v.Host)
	}
	if got := strings.TrimSpace(operator.must("exec", p.name, "--", "echo", "hello")); got != "hello" {
		t.Errorf("the operator's exec says %q", got)
	}
	if token := admin.must("cluster", "join-token", "--lifetime", "1m"); !strings.HasPrefix(token, "podd1.") {
		t.Errorf("the admin's token is %q", token)
	}
	members := admin.must("cluster", "members", "-o", "name")
	for _, member := range []string{"host/a", "host/b", "host/c", "proxy/proxy", "user/" + viewer.name} {
		if !strings.Contains(members, member+"\n") {
			t.Errorf("%s is missing among the members:\n%s", member, members)
		}
	}
	admin.must("cluster", "user", "rm", viewer.name)
	if members := admin.must("cluster", "members", "-o", "name"); strings.Contains(members, viewer.name) {
		t.Errorf("the user who was removed is a member:\n%s", members)
	}
	requireRefusedEverywhere(t, "a revoked user", viewer.store().ClientTLS)
	viewer.refused([]string{"revoked", "podctl context add"}, "ps")
}

// A revocation reaches who is connected already, also by way of another podd.
func TestRevocationEndsCalls(t *testing.T) {
	p := newPodOn(t, "b", "", "--", "sh", "-euc", counter)
	operator := newRemoteUser(t, trust.RoleOperator)
	cmd := operator.command("logs", "-f", p.name)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	logs := follow(t, cmd)
	logs.await("logs -f", 10)
	mustPodctl(t, "--socket", theLab.Socket(lab.Proxy), "cluster", "user", "rm", operator.name)
	for logs.read("logs -f") {
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != codeError || !strings.Contains(stderr.String(), "revoked") {
		t.Errorf("logs -f of a revoked user ends with %v and says %q", err, stderr.String())
	}
	mustPodctl(t, "exec", p.name, "--", "true")
}

// Without a certificate a daemon tells how it is, and nothing else.
func TestNoCertificate(t *testing.T) {
	client := tlsClient(lab.Client, anonymous())
	for _, node := range theLab.Daemons() {
		at := theLab.API(node)
		for _, path := range []string{"/healthz", "/metrics"} {
			if status, _, err := fetch(client, at, path); status != http.StatusOK {
				t.Errorf("%s of %s: status %d, %v", path, node, status, err)
			}
		}
		for _, path := range []string{"/", "/debug/pprof/", "/podd.v1.PodService/", "/podd.v1.PodService/NoSuch"} {
			if status, body, err := fetch(client, at, path); status == http.StatusOK || err != nil {
				t.Errorf("%s of %s: status %d, %v:\n%s", path, node, status, err, body)
			}
		}
		services := poddv1.File_podd_v1_podd_proto.Services()
		for i := range services.Len() {
			for j := range services.Get(i).Methods().Len() {
				requireUnauthenticated(t, client, at, services.Get(i).Methods().Get(j))
			}
		}
		// What the answers would be in clear.
		conn, err := theLab.Dial(bounded(t), lab.Client, "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /healthz HTTP/1.0\r\n\r\n")
		if answer, _ := io.ReadAll(conn); strings.Contains(string(answer), "200 OK") {
			t.Errorf("%s answers in clear: %s", node, answer)
		}
		conn.Close()
	}
	for _, node := range theLab.Daemons() {
		upgrade := "podd-transfer"
		if node == lab.Proxy {
			upgrade = "podd-relay"
		}
		request, err := http.NewRequest(http.MethodPost, "https://"+theLab.API(node).String()+"/"+upgrade, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Connection", "Upgrade")
		request.Header.Set("Upgrade", upgrade)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode < 400 {
			t.Errorf("%s at %s: %s", upgrade, node, response.Status)
		}
	}
	if admitted := admittedBy(func(string) *tls.Config { return anonymous() }); len(admitted) > 0 {
		t.Errorf("nobody is admitted by %v", admitted)
	}
}

// On the proxy's machine podctl knows the cluster, and says that it knows no pods.
func TestProxySocket(t *testing.T) {
	ask := func(args ...string) result {
		cmd := podctlCommand(bounded(t), "a", args...)
		cmd.Env = append(cmd.Env, "PODCTL_HOST=unix://"+theLab.Socket(lab.Proxy))
		return run(t, cmd)
	}
	requireResult(t, ask("host", "ls"), 0, []string{"10.10.1.2", "alive"}, "host ls")
	requireResult(t, ask("cluster", "status"), 0, []string{"local root (admin)", theLab.API(lab.Proxy).String()}, "cluster status")
	requireResult(t, ask("cluster", "members"), 0, []string{"proxy"}, "cluster members")
	requireResult(t, ask("ps"), codeError, []string{"podproxy knows the cluster", "--context"}, "ps")
	requireResult(t, ask("run", "-d", "--name", "proxysocket", "--", "sleep", "inf"), codeError, []string{"podproxy knows the cluster"}, "run")
}

// requireUnauthenticated calls a procedure with an empty message, as the Connect
// protocol does. To join is what all may try, but not without a token.
func requireUnauthenticated(t *testing.T, client *http.Client, at netip.AddrPort, method protoreflect.MethodDescriptor) {
	t.Helper()
	url := fmt.Sprintf("https://%s/%s/%s", at, method.Parent().FullName(), method.Name())
	kind, body := "application/json", "{}"
	if method.IsStreamingClient() || method.IsStreamingServer() {
		kind, body = "application/connect+json", string(binary.BigEndian.AppendUint32([]byte{0}, 2))+"{}"
	}
	response, err := client.Post(url, kind, strings.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	refused := strings.Contains(string(answer), `"code":"unauthenticated"`)
	if method.Name() == "Join" {
		refused = response.StatusCode >= 400
	}
	if !refused {
		t.Errorf("%s: %s\n%s", url, response.Status, answer)
	}
}

// Certificates of another cluster that names its members alike count for nothing.
func TestOtherAuthority(t *testing.T) {
	dir := t.TempDir()
	_, err := trust.Init(filepath.Join(dir, "authority"), trust.InitOptions{
		Identity: trust.Identity{Kind: trust.KindProxy, Name: lab.Proxy}, Info: trust.ClusterInfo{Directory: trust.Embedded},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, identity := range []trust.Identity{
		{Kind: trust.KindHost, Name: "a"}, {Kind: trust.KindProxy, Name: lab.Proxy}, {Kind: trust.KindUser, Name: "root", Role: trust.RoleAdmin},
	} {
		store := issue(t, filepath.Join(dir, "authority"), filepath.Join(dir, identity.Key()), identity, trust.Membership{})
		admitted := admittedBy(func(string) *tls.Config {
			// It knows well that the server is not of its own cluster.
			return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: store.ClientTLS("").GetClientCertificate}
		})
		if len(admitted) > 0 {
			t.Errorf("another cluster's %s is admitted by %v", identity, admitted)
		}
	}
	// What other people's programs make of it.
	theirs, ours := trust.Dir(filepath.Join(dir, "host.a")), trust.Dir(theLab.StateDir("b"))
	curl := func(credentials string, at netip.AddrPort) result {
		return run(t, theLab.CommandContext(bounded(t), lab.Client, "curl", "-sS", "--insecure", "--max-time", "10",
			"--cert", filepath.Join(credentials, "certificate.pem"), "--key", filepath.Join(credentials, "key.pem"),
			"-H", "Content-Type: application/json", "-d", "{}", fmt.Sprintf("https://%s/podd.v1.HostService/ListHosts", at)))
	}
	for _, at := range []netip.AddrPort{theLab.API("a"), theLab.API(lab.Proxy), directoryAddress()} {
		if r := curl(theirs, at); r.code == 0 {
			t.Errorf("curl at %s with another cluster's certificate: exit code %d\n%s%s", at, r.code, r.stdout, r.stderr)
		}
		if r := curl(ours, at); r.code != 0 {
			t.Errorf("curl at %s with host b's certificate: exit code %d\n%s", at, r.code, r.stderr)
		}
	}
	// And the other way round: podctl does not talk to a cluster that isn't its own.
	admin := newRemoteUser(t, trust.RoleAdmin)
	credentials := filepath.Join(admin.config, "podctl", "credentials")
	if err := os.RemoveAll(filepath.Join(credentials, "site")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(trust.Dir(filepath.Join(dir, "user.root")), filepath.Join(credentials, "site")); err != nil {
		t.Fatal(err)
	}
	admin.refused([]string{"unknown authority", "not of the cluster"}, "ps")
}

// A user, be it an admin, is no daemon: neither the directory nor what daemons
// ask of each other is for it.
func TestUserIsNoDaemon(t *testing.T) {
	admin := newRemoteUser(t, trust.RoleAdmin)
	requireDirectory(t, openStore(t, "a"))
	if response, err := askDirectory(admin.store().ClientTLS(trust.DirectoryName)); err == nil {
		t.Errorf("the directory shows a user %d keys", len(response.Kvs))
	}
	for procedure, at := range map[string]netip.AddrPort{
		"podd.v1.TargetService/CheckTarget": theLab.API("b"), "podd.v1.ProxyService/Hold": theLab.API(lab.Proxy), "podd-transfer": theLab.API("b"),
		"podd-relay?id=x": theLab.API(lab.Proxy),
	} {
		client := tlsClient("a", admin.store().ClientTLS(trust.DaemonName))
		for _, header := range []string{"", "host/a"} { // as if a podd had passed it on for that caller
			request, err := http.NewRequest(http.MethodPost, "https://"+at.String()+"/"+procedure, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/json")
			if header != "" {
				request.Header.Set("Podd-Forwarded-By", "a")
				request.Header.Set("Podd-Caller", header)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			answer, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusForbidden {
				t.Errorf("%s for a user, Podd-Caller %q: %s\n%s", procedure, header, response.Status, answer)
			}
		}
	}
	// Nor may a viewer say that it is somebody else.
	viewer := newRemoteUser(t, trust.RoleViewer)
	client := tlsClient("a", viewer.store().ClientTLS(trust.DaemonName))
	request, err := http.NewRequest(http.MethodPost, "https://"+theLab.API("b").String()+"/podd.v1.TrustService/CreateToken", strings.NewReader(`{"kind":"host"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Podd-Forwarded-By", "a")
	request.Header.Set("Podd-Caller", "local/root/admin")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("a viewer who calls itself root gets %s", response.Status)
	}
}

// Calls that change something are written down by the daemon that does it.
func TestAudit(t *testing.T) {
	operator, viewer := newRemoteUser(t, trust.RoleOperator), newRemoteUser(t, trust.RoleViewer)
	const name = "audited"
	t.Cleanup(func() { podctl(t, "rm", "-f", name) })
	operator.must("run", "-d", "--host", "a", "--name", name, "--", "sleep", "inf")
	viewer.refused([]string{"permission denied"}, "rm", "-f", name)
	operator.must("move", name, "b")
	r := operator.podctl("move", name, "b")
	if r.code == 0 {
		t.Error("a move to where the pod is succeeded")
	}
	operator.must("rm", "-f", name)
	mustPodctl(t, "run", "-d", "--host", "c", "--name", name, "--", "sleep", "inf")
	mustPodctl(t, "rm", "-f", name)

	type record struct {
		Time, Caller, Address, Procedure, Subject, Result, Error string
		DurationMs                                               float64
	}
	var records []record
	for _, node := range theLab.Daemons() {
		path := filepath.Join(theLab.StateDir(node), "audit.jsonl")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var r record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			if strings.Contains(r.Subject, name) {
				records = append(records, r)
			}
		}
	}
	has := func(caller, method, result, address string) {
		t.Helper()
		n := 0
		for _, r := range records {
			if r.Caller == caller && strings.HasSuffix(r.Procedure, "/"+method) && r.Result == result && strings.HasPrefix(r.Address, address) && r.Time != "" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d records of %s by %s with the result %s, want one, among\n%+v", n, method, caller, result, records)
		}
	}
	client := theLab.Address(lab.Client).String()
	by := func(u *remoteUser) string { return u.store().Identity().String() }
	has(by(operator), "CreatePod", "ok", client)
	has(by(operator), "MovePod", "ok", client)
	has(by(operator), "RemovePod", "ok", client)
	has(by(viewer), "RemovePod", "permission_denied", client)
	has("local root (admin)", "CreatePod", "ok", "")
	has("local root (admin)", "RemovePod", "ok", "")
	for _, r := range records {
		if r.Result != "ok" && r.Error == "" {
			t.Errorf("a failure without an error: %+v", r)
		}
	}
}
