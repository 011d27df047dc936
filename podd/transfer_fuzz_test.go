package podd

import (
	"bufio"
	"bytes"
	"net"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"

	poddv1 "podd/api/podd/v1"
)

// FuzzTransferMessages reads what the other end of a move may send, at either
// end: every message is a whole one or an error, and no more is read than was
// sent.
func FuzzTransferMessages(f *testing.F) {
	for _, m := range []*poddv1.SourceMessage{
		{Message: &poddv1.SourceMessage_Reserve{Reserve: &poddv1.Reserve{Protocol: transferVersion, Move: "x"}}},
		{Message: &poddv1.SourceMessage_Files{Files: &poddv1.Files{Final: true}}},
	} {
		var b bytes.Buffer
		if _, err := protodelim.MarshalTo(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		theirs.Close()
		source := newTransferConn(ours, bufio.NewReader(bytes.NewReader(data)))
		for range len(data) + 1 {
			if source.receive(new(poddv1.SourceMessage)) != nil {
				break
			}
		}
		target := newTransferConn(ours, bufio.NewReader(bytes.NewReader(data)))
		for range len(data) + 1 {
			if m, err := target.expect(); err != nil {
				if err.Error() == "" && m == nil {
					continue // an error of the target without a text
				}
				break
			}
		}
	})
}
