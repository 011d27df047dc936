package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// httpConn is one persistent HTTP/1.1 connection. http.Transport would replace
// a broken one behind our back.
type httpConn struct {
	net.Conn
	r       *bufio.Reader
	request *http.Request
	release func() bool
}

// dialHTTP connects to the server of rawURL. The connection ends with ctx.
func dialHTTP(ctx context.Context, dial DialFunc, rawURL string) (*httpConn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	request, err := http.NewRequest(http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, err
	}
	conn, err := dial.dial(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	return &httpConn{conn, bufio.NewReader(conn), request, closeOnDone(ctx, conn)}, nil
}

// get sends the request and reads the whole response.
func (c *httpConn) get() error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := c.request.Write(c.Conn); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.r, c.request)
	if err != nil {
		return fmt.Errorf("reading response: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", response.Status)
	}
	if response.Close {
		return fmt.Errorf("the server does not keep the connection")
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return fmt.Errorf("reading response: %w", err)
	}
	return nil
}

func (c *httpConn) close() {
	c.release()
	c.Close()
}
