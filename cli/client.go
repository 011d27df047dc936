package cli

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
)

// How long to wait for a connection, and for a sign of life on a silent one.
const (
	dialTimeout  = 10 * time.Second
	pingInterval = 15 * time.Second
	pingTimeout  = 15 * time.Second
)

// client speaks the API to one podd.
type client struct {
	pods   poddv1connect.PodServiceClient
	images poddv1connect.ImageServiceClient
	hosts  poddv1connect.HostServiceClient
	moves  poddv1connect.MoveServiceClient

	address   address
	transport *http.Transport
	// unreachable is why the last attempt to connect to podd itself failed;
	// nil once one succeeded. It tells "no podd here" from "podd says that
	// another host can't be reached".
	unreachable atomic.Pointer[error]
	// reached is true once a connection to podd was made.
	reached atomic.Bool
}

// newClient makes a client that connects when it is first used. It speaks
// HTTP/2 from the first byte (exec and attach stream in both directions at once).
func newClient(to address) *client {
	c := &client{address: to}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	c.transport = &http.Transport{
		Protocols:   protocols,
		DialContext: c.dial,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingInterval, PingTimeout: pingTimeout},
	}
	http := bareClient{&http.Client{Transport: c.transport}}
	options := api.ClientOptions()
	c.pods = poddv1connect.NewPodServiceClient(http, to.baseURL(), options)
	c.images = poddv1connect.NewImageServiceClient(http, to.baseURL(), options)
	c.hosts = poddv1connect.NewHostServiceClient(http, to.baseURL(), options)
	c.moves = poddv1connect.NewMoveServiceClient(http, to.baseURL(), options)
	return c
}

func (c *client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, c.address.network, c.address.location)
	if err != nil {
		c.unreachable.Store(&err)
		return nil, err
	}
	c.unreachable.Store(nil)
	c.reached.Store(true)
	return conn, nil
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// bareClient leaves the request's URL out of errors: users of podctl know
// nothing of it.
type bareClient struct{ client *http.Client }

func (b bareClient) Do(request *http.Request) (*http.Response, error) {
	response, err := b.client.Do(request)
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return response, err
}
