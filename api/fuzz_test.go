package api

import (
	"errors"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// FuzzPod reads a pod as another daemon or podctl may send it: whatever it is, it
// can be checked, and is the same after another way there and back.
func FuzzPod(f *testing.F) {
	for _, p := range []*poddv1.Pod{
		{},
		{Spec: &poddv1.PodSpec{Name: "alice", Image: "host", Volumes: []*poddv1.Volume{{Source: "data", Destination: "/data", Policy: "move"}}}, Binding: &poddv1.Binding{Host: "a", Label: 7, Epoch: 1}},
		{Spec: &poddv1.PodSpec{Name: "../x", Volumes: []*poddv1.Volume{{Source: "/", Destination: "../../etc"}}, MemoryBytes: -1}},
	} {
		data, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		message := new(poddv1.Pod)
		if proto.Unmarshal(data, message) != nil {
			return
		}
		p := PodFromProto(message)
		if err := p.Spec.Validate(); err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("refused by %v", err)
		}
		first := PodToProto(p)
		if second := PodToProto(PodFromProto(first)); !proto.Equal(first, second) {
			t.Errorf("%v becomes %v", first, second)
		}
	})
}

// FuzzMove does the same with a move.
func FuzzMove(f *testing.F) {
	for _, m := range []*poddv1.Move{{}, {Id: "x", Pod: "alice", Source: "a", Target: "b", Next: &poddv1.Binding{Label: 1 << 31, VirtualAddress: "nonsense"}}} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		message := new(poddv1.Move)
		if proto.Unmarshal(data, message) != nil {
			return
		}
		first := MoveToProto(MoveFromProto(message))
		if second := MoveToProto(MoveFromProto(first)); !proto.Equal(first, second) {
			t.Errorf("%v becomes %v", first, second)
		}
	})
}

// FuzzErrors takes any status of another daemon: its text is kept, and what it
// means on this side is what it meant there.
func FuzzErrors(f *testing.F) {
	f.Add(uint32(connect.CodeNotFound), "pod \"alice\": not found")
	f.Add(uint32(0), "")
	f.Add(uint32(99), "\x00\xff")
	f.Fuzz(func(t *testing.T, code uint32, text string) {
		err := ErrorFromConnect(connect.NewError(connect.Code(code), errors.New(text)))
		if err == nil {
			t.Fatal("an error has become none")
		}
		for _, c := range codes {
			if errors.Is(err, c.sentinel) && c.code != connect.Code(code) {
				t.Errorf("code %d means %v", code, c.sentinel)
			}
		}
		_ = ErrorToConnect(err).Error()
	})
}

// FuzzRoute derives the route from any request: it must be one header, whatever
// the names in it.
func FuzzRoute(f *testing.F) {
	for _, r := range []proto.Message{
		&poddv1.StopPodRequest{Pod: "alice"},
		&poddv1.StopPodRequest{Pod: "x\r\nPodd-Caller: admin"},
	} {
		data, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, request := range []proto.Message{
			new(poddv1.StopPodRequest), new(poddv1.ExecRequest), new(poddv1.AttachRequest), new(poddv1.ImportImageRequest),
			new(poddv1.RestorePodRequest), new(poddv1.MovePodRequest), new(poddv1.CreatePodRequest),
		} {
			if proto.Unmarshal(data, request) != nil {
				continue
			}
			header := http.Header{}
			setRoute(header, request)
			if len(header) > 1 || len(header.Values(RouteHeader)) > 1 {
				t.Errorf("headers %v", header)
			}
		}
	})
}
