package main

import (
	"errors"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"nosuch"}, {"tcp", "-nosuch"}} {
		if err := run(args); !errors.Is(err, errUsage) {
			t.Errorf("run(%q) = %v", args, err)
		}
	}
	if err := run([]string{"tcp", "-address", "127.0.0.1:1"}); err == nil {
		t.Error("no error without a server")
	}
}
