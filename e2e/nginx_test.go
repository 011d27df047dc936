//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"podd/e2e/workload"
)

// nginxScript runs nginx as Debian does: a root master and a www-data worker.
const nginxScript = `
mkdir -p /srv/www
head -c 24000000 /dev/urandom >/srv/www/large
echo small >/srv/www/small
cat >/srv/nginx.conf <<'END'
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
	access_log off;
	keepalive_timeout 600;
	keepalive_requests 1000000;
	server { listen 80; root /srv/www; }
}
END
exec nginx -e stderr -c /srv/nginx.conf
`

func TestNginx(t *testing.T) {
	server := newShell(t, "", nginxScript)
	url := "http://" + server.awaitPort(80)
	if users := server.shell("ps -C nginx -o user= | sort"); users != "root\nwww-data" {
		t.Fatalf("nginx runs as %q", users)
	}
	sum := strings.Fields(server.exec("sha256sum", "/srv/www/large"))[0]

	const idleConnections = 200
	idle, err := workload.OpenIdle(bounded(t), fromClient, url+"/small", idleConnections)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(idle.Close)
	keepAlive := workload.NewKeepAlive(workload.KeepAliveConfig{URL: url + "/small", Dial: fromClient, Connections: 8})
	busy := startLoad(t, keepAlive)
	// It lasts about six seconds.
	download := workload.NewDownload(workload.DownloadConfig{URL: url + "/large", Dial: fromClient, Rate: 4 << 20, SHA256: sum})
	large := startLoad(t, download)

	for _, host := range []string{"b", "c"} {
		if r := download.Result(); r.Bytes == r.Total {
			t.Fatalf("the download is over before the move to %s: nothing would be tested", host)
		}
		receipt := server.move(host)
		if receipt.Connections < idleConnections {
			t.Errorf("%d connections were carried; want %d at least", receipt.Connections, idleConnections)
		}
	}
	busy.finish()
	t.Logf("%+v", keepAlive.Result())
	if alive, err := idle.Check(bounded(t)); err != nil || alive != idleConnections {
		t.Errorf("%d of %d idle connections are alive: %v", alive, idleConnections, err)
	}
	large.wait()
	if r := download.Result(); r.Bytes != r.Total || r.SHA256 != sum {
		t.Errorf("the download: %+v; want digest %s", r, sum)
	}
}
