//go:build e2e

package e2e

import (
	"testing"

	"podd/e2e/workload"
)

func TestRedis(t *testing.T) {
	server := newShell(t, "", `mkdir /srv/redis
exec redis-server --bind 0.0.0.0 --protected-mode no --dir /srv/redis --appendonly yes`)
	address := server.awaitPort(6379)
	client := workload.NewRedis(workload.RedisConfig{Address: address, Dial: fromClient})
	load := startLoad(t, client)
	for _, host := range []string{"b", "c", "a"} {
		server.move(host)
		t.Logf("the longest silence was %v", load.Lap())
		// From inside, over the pod's own loopback.
		if got := server.exec("redis-cli", "ping"); got != "PONG" {
			t.Errorf("redis-cli ping: %q", got)
		}
	}
	load.finish()
	if err := client.Verify(bounded(t)); err != nil {
		t.Errorf("keys and times to live after the moves: %v", err)
	}
	t.Logf("%+v", client.Result())
}
