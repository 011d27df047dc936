package api

import (
	"context"

	"connectrpc.com/connect"
)

// handlerInterceptor gives every error a handler returns its status code.
type handlerInterceptor struct{}

// HandlerOptions are the options every handler of the API is made with.
func HandlerOptions() connect.Option {
	return connect.WithInterceptors(handlerInterceptor{})
}

func (handlerInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		return response, ErrorToConnect(err)
	}
}

func (handlerInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (handlerInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return ErrorToConnect(next(ctx, conn))
	}
}
