//go:build e2e

package e2e

import (
	"testing"

	"podd/e2e/workload"
	"podd/pod"
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

// TestRedisDigest moves much data that redis itself digests, by each strategy.
func TestRedisDigest(t *testing.T) {
	server := newShell(t, "", `exec redis-server --dir /tmp --save "" --enable-debug-command yes`)
	server.shell("until redis-cli ping; do sleep 0.1; done; redis-cli debug populate 200000 key 200")
	want := server.exec("redis-cli", "debug", "digest")
	for _, strategy := range []pod.Strategy{pod.StrategyPreCopy, pod.StrategyPostCopy} {
		for _, host := range []string{"b", "a"} {
			server.moveBy(strategy, host)
			if got := server.exec("redis-cli", "debug", "digest"); got != want {
				t.Fatalf("after a move by %s the digest is %s; want %s", strategy, got, want)
			}
		}
	}
	if got := server.exec("redis-cli", "dbsize"); got != "200000" {
		t.Errorf("there are %s keys", got)
	}
}
