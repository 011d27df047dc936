package cli_test

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// message is the pod for the wire. The packets of one called "held" are.
func (p *fakePod) message() *poddv1.Pod {
	m := api.PodToProto(&p.record)
	if p.record.Name() == "held" {
		m.Held, m.HeldFor = true, durationpb.New(1500*time.Millisecond)
	}
	return m
}

// CheckHost finds a well, something to be done on b, and that c can't be reached.
func (s *server) CheckHost(_ context.Context, r *connect.Request[poddv1.CheckHostRequest]) (*connect.Response[poddv1.CheckHostResponse], error) {
	good := &poddv1.Finding{Check: "criu", Severity: "ok", Detail: "version 4.2.1 suits kernel 6.18.0"}
	narrow := &poddv1.Finding{Check: "mtu", Severity: "warning", Detail: "eth0 takes 1400 bytes", Remedy: "ip link set dev eth0 mtu 1500"}
	full := &poddv1.Finding{Check: "space", Severity: "error", Detail: "/var/lib/podd has 1 MiB free", Remedy: "podctl image rm NAME"}
	out := &poddv1.CheckHostResponse{Host: r.Msg.GetHost(), Findings: []*poddv1.Finding{good}}
	switch host := r.Msg.GetHost(); {
	case r.Msg.GetProxy():
		out.Host = "proxy"
	case checkHost(host) != nil:
		return nil, checkHost(host)
	case host == "b":
		out.Findings = append(out.Findings, narrow)
	case host == "full":
		out.Findings = append(out.Findings, narrow, full)
	case host == "odd":
		return nil, fmt.Errorf("%w: the podd of host odd at 10.10.4.2:7443: no route to host", pod.ErrUnavailable)
	}
	return connect.NewResponse(out), nil
}
