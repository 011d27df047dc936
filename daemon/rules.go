package daemon

import (
	"fmt"
	"strings"

	poddv1 "podd/api/podd/v1"
	rpc "podd/api/podd/v1/poddv1connect"
	"podd/pod"
	"podd/trust"
)

// audience is who may call a procedure.
type audience int

const (
	// anybody needs no certificate.
	anybody audience = iota
	// members have a certificate of any kind, or are local.
	members
	// viewers, operators and admins are users with that role at least. What
	// viewers may see, daemons may too.
	viewers
	operators
	admins
	// hosts are the daemons of hosts, for themselves and not for a caller.
	hosts
)

// rule says who may call a procedure, and whether it changes anything, so that
// calls of it are written down.
type rule struct {
	who     audience
	mutates bool
}

// rules has every procedure of the API. One that is not in it is refused.
var rules = map[string]rule{
	rpc.PodServiceCreatePodProcedure:         {operators, true},
	rpc.PodServiceListPodsProcedure:          {viewers, false},
	rpc.PodServiceGetPodProcedure:            {viewers, false},
	rpc.PodServiceWaitPodProcedure:           {viewers, false},
	rpc.PodServiceStopPodProcedure:           {operators, true},
	rpc.PodServiceKillPodProcedure:           {operators, true},
	rpc.PodServiceRemovePodProcedure:         {operators, true},
	rpc.PodServiceLogsProcedure:              {operators, false},
	rpc.PodServiceExecProcedure:              {operators, true},
	rpc.PodServiceAttachProcedure:            {operators, true},
	rpc.PodServiceCheckpointPodProcedure:     {operators, true},
	rpc.PodServiceConfirmCheckpointProcedure: {operators, true},
	rpc.PodServiceRestorePodProcedure:        {operators, true},

	// Others' pods are made from an image by its name, so who imports one
	// gets into them.
	rpc.ImageServiceImportImageProcedure: {admins, true},
	rpc.ImageServiceListImagesProcedure:  {viewers, false},
	rpc.ImageServiceRemoveImageProcedure: {admins, true},

	rpc.HostServiceListHostsProcedure:  {viewers, false},
	rpc.HostServiceGetVersionProcedure: {viewers, false},
	rpc.HostServiceCheckHostProcedure:  {viewers, false},
	rpc.HostServiceRemoveHostProcedure: {admins, true},

	rpc.TrustServiceGetTrustProcedure:    {members, false},
	rpc.TrustServiceCreateTokenProcedure: {admins, true},
	rpc.TrustServiceListTokensProcedure:  {viewers, false},
	rpc.TrustServiceDeleteTokenProcedure: {admins, true},
	rpc.TrustServiceListMembersProcedure: {viewers, false},
	rpc.TrustServiceRevokeUserProcedure:  {admins, true},
	rpc.TrustServiceJoinProcedure:        {anybody, true},
	rpc.TrustServiceRenewProcedure:       {members, true},

	rpc.MoveServiceCheckMoveProcedure:  {viewers, false},
	rpc.MoveServiceMovePodProcedure:    {operators, true},
	rpc.MoveServiceListMovesProcedure:  {viewers, false},
	rpc.MoveServiceGetMoveProcedure:    {viewers, false},
	rpc.MoveServiceCancelMoveProcedure: {operators, true},
	rpc.MoveServiceWaitMoveProcedure:   {viewers, false},

	rpc.TargetServiceCheckTargetProcedure: {hosts, false},

	rpc.ProxyServiceHoldProcedure:       {hosts, true},
	rpc.ProxyServiceListHoldsProcedure:  {viewers, false},
	rpc.ProxyServiceCheckProxyProcedure: {viewers, false},
}

// IsProcedure reports whether a path is a procedure of the API, be there one of
// that name or not.
func IsProcedure(path string) bool { return strings.HasPrefix(path, "/podd.v1.") }

// permit decides whether a caller may call a procedure at all. The error wraps
// pod.ErrUnknownCaller or pod.ErrDenied.
func permit(c Caller, procedure string) error {
	r, ok := rules[procedure]
	if !ok {
		return fmt.Errorf("%w: there is no procedure %s", pod.ErrDenied, procedure)
	}
	if r.who == anybody {
		return nil
	}
	if !c.Known() {
		return fmt.Errorf("%w: %s needs a certificate of this cluster", pod.ErrUnknownCaller, method(procedure))
	}
	var need trust.Role
	switch r.who {
	case members:
		return nil
	case hosts:
		if c.Kind == trust.KindHost && c.Via == "" {
			return nil
		}
		return fmt.Errorf("%w: %s may not %s: it is for hosts only", pod.ErrDenied, c, method(procedure))
	case viewers:
		if c.Kind.Daemon() {
			return nil
		}
		need = trust.RoleViewer
	case operators:
		need = trust.RoleOperator
	default:
		need = trust.RoleAdmin
	}
	if !c.Role.Allows(need) {
		return fmt.Errorf("%w: %s may not %s: it needs the role %s", pod.ErrDenied, c, method(procedure), need)
	}
	return nil
}

// method is the last part of a procedure's path.
func method(procedure string) string { return procedure[strings.LastIndex(procedure, "/")+1:] }

// permitMessage decides whether a caller who may call a procedure may say this
// in it. The error wraps pod.ErrDenied.
func permitMessage(c Caller, message any) error {
	switch m := message.(type) {
	case *poddv1.CreatePodRequest:
		var sources []string
		for _, v := range m.GetSpec().GetVolumes() {
			sources = append(sources, v.GetSource())
		}
		return permitFiles(c, m.GetSpec().GetImage(), sources)
	case *poddv1.RestorePodRequest:
		if m.GetHeader().GetForceNewIdentity() && !c.Role.Allows(trust.RoleAdmin) {
			return fmt.Errorf("%w: %s may not make a copy with a new identity: it needs the role %s", pod.ErrDenied, c, trust.RoleAdmin)
		}
	}
	return nil
}

// PermitSpec decides whether a caller may run a pod as spec says: what is on the
// hosts is for admins only. The error wraps pod.ErrDenied.
func PermitSpec(c Caller, spec pod.Spec) error {
	var sources []string
	for _, v := range spec.Volumes {
		sources = append(sources, v.Source)
	}
	return permitFiles(c, spec.Image, sources)
}

// permitFiles keeps from who is no admin the directories of the hosts, which a
// pod could write to as root. An image that is a directory is among them; the
// image "host" has the machine's secrets taken out.
func permitFiles(c Caller, image string, volumes []string) error {
	if c.Role.Allows(trust.RoleAdmin) {
		return nil
	}
	if strings.HasPrefix(image, "dir:") {
		return fmt.Errorf("%w: %s may not use the image %s: directories of a host need the role %s", pod.ErrDenied, c, image, trust.RoleAdmin)
	}
	for _, source := range volumes {
		if (pod.Volume{Source: source}).Named() {
			continue
		}
		return fmt.Errorf("%w: %s may not use the volume %s: directories of a host need the role %s", pod.ErrDenied, c, source, trust.RoleAdmin)
	}
	return nil
}
