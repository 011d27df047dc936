package daemon

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
	"podd/trust"
)

// procedures are all of the API, with whether each takes a stream.
func procedures() map[string]bool {
	all := map[string]bool{}
	services := poddv1.File_podd_v1_podd_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			all["/"+string(s.FullName())+"/"+string(m.Name())] = m.IsStreamingClient() || m.IsStreamingServer()
		}
	}
	return all
}

func TestEveryProcedureHasARule(t *testing.T) {
	all := procedures()
	for procedure := range all {
		if _, ok := rules[procedure]; !ok {
			t.Errorf("%s has no rule", procedure)
		}
	}
	for procedure := range rules {
		if _, ok := all[procedure]; !ok {
			t.Errorf("there is a rule for %s, which does not exist", procedure)
		}
	}
}

// Who may call what, said once more and in another way than in the rules.
const (
	forAnybody   = "Join"
	forMembers   = "GetTrust Renew"
	forViewers   = "ListPods GetPod WaitPod ListImages ListHosts GetVersion CheckHost ListTokens ListMembers CheckMove ListMoves GetMove WaitMove ListHolds CheckProxy"
	forOperators = "CreatePod StopPod KillPod RemovePod Logs Exec Attach CheckpointPod ConfirmCheckpoint RestorePod MovePod CancelMove"
	forAdmins    = "ImportImage RemoveImage RemoveHost CreateToken DeleteToken RevokeUser"
	forHosts     = "CheckTarget Hold"
)

// TestRoles calls every procedure over TLS as everybody there is.
func TestRoles(t *testing.T) {
	n := newIssuer(t, 0)
	clients := map[string]*http.Client{"nobody": n.client(nil), "local": n.local()}
	for name, who := range map[string]trust.Identity{
		"viewer": viewer, "operator": operator, "admin": admin, "host": hostA, "proxy": {Kind: trust.KindProxy, Name: "other"},
	} {
		clients[name] = n.client(n.credentials(who))
	}
	may := map[string][]string{
		"nobody":   {forAnybody},
		"viewer":   {forAnybody, forMembers, forViewers},
		"operator": {forAnybody, forMembers, forViewers, forOperators},
		"admin":    {forAnybody, forMembers, forViewers, forOperators, forAdmins},
		"local":    {forAnybody, forMembers, forViewers, forOperators, forAdmins},
		"host":     {forAnybody, forMembers, forViewers, forHosts},
		"proxy":    {forAnybody, forMembers, forViewers},
	}
	for procedure, stream := range procedures() {
		message := "{}"
		if stream {
			message = envelope("{}")
		}
		for name, client := range clients {
			url := n.url()
			if name == "local" {
				url = "http://podd"
			}
			body, err := post(t, client, url+procedure, message, nil)
			if err != nil {
				t.Errorf("%s, %s: %v", name, procedure, err)
				continue
			}
			want := slices.Contains(strings.Fields(strings.Join(may[name], " ")), method(procedure))
			refused := strings.Contains(body, "may not "+method(procedure)) || strings.Contains(body, "needs a certificate of this cluster")
			if refused == want {
				t.Errorf("%s calls %s: may %v, got %q", name, procedure, want, body)
			}
		}
	}
	// What the API does not have is nobody's.
	for name, client := range map[string]*http.Client{"admin": clients["admin"], "nobody": clients["nobody"]} {
		if body, err := post(t, client, n.url()+"/podd.v1.PodService/Frobnicate", "{}", nil); err != nil || !strings.Contains(body, "there is no procedure") {
			t.Errorf("%s, an unknown procedure: %q, %v", name, body, err)
		}
	}
}

// TestContents has operators ask for what only admins may.
func TestContents(t *testing.T) {
	n := newIssuer(t, 0)
	clients := map[trust.Role]*http.Client{
		trust.RoleOperator: n.client(n.credentials(operator)), trust.RoleAdmin: n.client(n.credentials(admin)),
	}
	const create, restore = "/podd.v1.PodService/CreatePod", "/podd.v1.PodService/RestorePod"
	for _, test := range []struct {
		procedure, message string
		admins             bool
	}{
		{create, `{"spec":{"name":"p","image":"host","volumes":[{"source":"data","destination":"/data"}]}}`, false},
		{create, `{"spec":{"name":"p","image":"host","volumes":[{"source":"data","destination":"/data"},{"source":"/etc","destination":"/etc"}]}}`, true},
		{create, `{"spec":{"name":"p","image":"dir:/"}}`, true},
		{restore, envelope(`{"header":{"name":"q"}}`), false},
		{restore, envelope(`{"header":{"name":"q","forceNewIdentity":true}}`), true},
	} {
		for role, client := range clients {
			body, err := post(t, client, n.url()+test.procedure, test.message, nil)
			if err != nil {
				t.Fatal(err)
			}
			refused := strings.Contains(body, `"permission_denied"`)
			// The handlers are unimplemented and read nothing of a stream.
			if want := test.admins && role != trust.RoleAdmin && test.procedure == create; refused != want {
				t.Errorf("%s says %q: refused %v, want %v: %s", role, test.message, refused, want, body)
			}
		}
	}
	stream := &poddv1.RestorePodRequest{Request: &poddv1.RestorePodRequest_Header{Header: &poddv1.RestorePodHeader{ForceNewIdentity: true}}}
	if permitMessage(Caller{Identity: operator}, stream) == nil || permitMessage(Caller{Identity: admin}, stream) != nil {
		t.Error("copies with a new identity are not for admins only")
	}
	spec := pod.Spec{Image: "host", Volumes: []pod.Volume{{Source: "/srv"}}}
	if PermitSpec(Caller{Identity: operator}, spec) == nil || PermitSpec(Caller{Identity: admin}, spec) != nil {
		t.Error("directories of a host are not for admins only")
	}
}

// TestForwarded has callers claim to be others.
func TestForwarded(t *testing.T) {
	n := newIssuer(t, 0)
	const list, create = "/podd.v1.PodService/ListPods", "/podd.v1.TrustService/DeleteToken"
	for name, test := range map[string]struct {
		who    trust.Identity
		header http.Header
		want   string
	}{
		"a user forges":        {viewer, http.Header{ForwardedHeader: {"a"}, callerHeader: {admin.Text()}}, "user vera (viewer) may not DeleteToken"},
		"a proxy forges":       {trust.Identity{Kind: trust.KindProxy, Name: "p"}, http.Header{ForwardedHeader: {"a"}, callerHeader: {admin.Text()}}, "proxy p may not"},
		"a host passes on":     {hostA, http.Header{ForwardedHeader: {"a"}, callerHeader: {viewer.Text()}}, "user vera (viewer) may not"},
		"a host is another":    {hostA, http.Header{ForwardedHeader: {"b"}, callerHeader: {admin.Text()}, addressHeader: {"192.0.2.1:1"}}, "not_found"},
		"a host for nobody":    {hostA, http.Header{ForwardedHeader: {"a"}}, "needs a certificate"},
		"a host for a host":    {hostA, http.Header{ForwardedHeader: {"a"}, callerHeader: {"host/b"}}, "a daemon's own call"},
		"a host for nonsense":  {hostA, http.Header{ForwardedHeader: {"a"}, callerHeader: {"emperor/nero"}}, "host a passed on"},
		"a host is no admin":   {hostA, nil, "host a may not DeleteToken"},
		"without being passed": {hostA, http.Header{callerHeader: {admin.Text()}}, "host a may not DeleteToken"},
	} {
		body, err := post(t, n.client(n.credentials(test.who)), n.url()+create, `{"id":"x"}`, test.header)
		if err != nil || !strings.Contains(body, test.want) {
			t.Errorf("%s: %q, %v; want %q", name, body, err, test.want)
		}
	}
	var believed auditRecord
	for _, r := range n.audited() {
		if r.Caller == admin.String() {
			believed = r
		}
	}
	if believed.Via != "host a" || believed.Address != "192.0.2.1:1" || believed.Subject != "token x" || believed.Result != "not_found" {
		t.Errorf("the call that was passed on is recorded as %+v", believed)
	}
	if body, err := post(t, n.client(nil), n.url()+list, "{}", http.Header{ForwardedHeader: {"a"}, callerHeader: {admin.Text()}}); err != nil || !strings.Contains(body, "needs a certificate") {
		t.Errorf("nobody forges: %q, %v", body, err)
	}
}
