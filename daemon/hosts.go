package daemon

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
)

// Hosts is what every daemon can answer of the service about hosts: what is in
// the directory. The rest is unimplemented.
type Hosts struct {
	poddv1connect.UnimplementedHostServiceHandler
	Directory *directory.Directory
}

// ListHosts implements poddv1connect.HostServiceHandler.
func (s *Hosts) ListHosts(ctx context.Context, _ *connect.Request[poddv1.ListHostsRequest]) (*connect.Response[poddv1.ListHostsResponse], error) {
	hosts, err := s.Directory.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := s.Directory.Pods(ctx)
	if err != nil {
		return nil, err
	}
	live := map[string]int{}
	for _, p := range pods {
		if p.Phase.Live() {
			live[p.Binding.Host]++
		}
	}
	response := &poddv1.ListHostsResponse{}
	for i := range hosts {
		response.Hosts = append(response.Hosts, api.HostToProto(&hosts[i], live[hosts[i].Name]))
	}
	return connect.NewResponse(response), nil
}

// RemoveHost implements poddv1connect.HostServiceHandler.
func (s *Hosts) RemoveHost(ctx context.Context, r *connect.Request[poddv1.RemoveHostRequest]) (*connect.Response[poddv1.RemoveHostResponse], error) {
	host, err := s.Directory.Host(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if host.Issuer {
		return nil, fmt.Errorf("%w: host %s has the cluster's authority: without it nobody can join or renew a certificate", pod.ErrConflict, host.Name)
	}
	if err := s.Directory.RemoveHost(ctx, host.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.RemoveHostResponse{}), nil
}
