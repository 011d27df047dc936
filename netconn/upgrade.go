package netconn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxRefusal bounds what is read of the reason for a refusal, in bytes.
const maxRefusal = 4 << 10

// AskUpgrade asks the server at the other end to speak a protocol of podd's own,
// until the deadline. Whatever follows is read from the reader, which may have the
// beginning of it already. After an error the connection is to be closed.
func AskUpgrade(conn net.Conn, reader *bufio.Reader, url, protocol string, deadline time.Time) error {
	request, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", protocol)
	// A server that hangs accepts connections all the same.
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		// The connection ends with the response; what it says is for people.
		reason, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
		return fmt.Errorf("it refused: %s: %s", response.Status, strings.TrimSpace(string(reason)))
	}
	return conn.SetDeadline(time.Time{})
}

// WantUpgrade looks whether a request is one to speak a protocol of podd's own.
// Who sends another is told.
func WantUpgrade(w http.ResponseWriter, r *http.Request, protocol string) error {
	if r.Header.Get("Upgrade") == protocol && r.ProtoMajor == 1 {
		return nil
	}
	http.Error(w, "want Upgrade: "+protocol, http.StatusUpgradeRequired)
	return fmt.Errorf("a request without an upgrade to %s", protocol)
}

// TakeOver agrees to a request of WantUpgrade: its connection is the caller's from
// here on, without the server's deadlines and with a limit for silence.
func TakeOver(w http.ResponseWriter, protocol string, silence time.Duration) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
		return nil, fmt.Errorf("taking over the connection of a request: %w", err)
	}
	err = errors.Join(conn.SetDeadline(time.Time{}), LimitSilence(conn, silence))
	if buffered.Reader.Buffered() > 0 {
		err = errors.Join(err, errors.New("the client does not wait for its request to be accepted"))
	}
	if err == nil {
		_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
	}
	if err != nil {
		conn.Close() // the error that counts is the first
		return nil, fmt.Errorf("taking over the connection of a request: %w", err)
	}
	return conn, nil
}
