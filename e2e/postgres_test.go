//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"podd/lab"
)

// postgresScript makes a database cluster and serves it, as user postgres.
const postgresScript = `
%[1]s/initdb --no-sync -A trust -D data
echo 'host all all all trust' >>data/pg_hba.conf
exec %[1]s/postgres -D data -c listen_addresses='*' -c unix_socket_directories=/tmp
`

func TestPostgreSQL(t *testing.T) {
	programs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(programs) == 0 {
		t.Fatalf("no PostgreSQL below /usr/lib/postgresql (Debian's package postgresql): %v", err)
	}
	bin := programs[len(programs)-1]
	server := newPod(t, "", "--user", "postgres", "--workdir", "/var/lib/postgresql", "--memory", "1g",
		"--", "sh", "-euc", fmt.Sprintf(postgresScript, bin))
	host, port, err := net.SplitHostPort(server.awaitPort(5432))
	if err != nil {
		t.Fatal(err)
	}
	// client is a command line of PostgreSQL's, as the database's user postgres.
	client := func(argv ...string) []string {
		return append([]string{"env", "PGHOST=" + host, "PGPORT=" + port, "PGUSER=postgres", "PGDATABASE=postgres"}, argv...)
	}
	until(t, "the server accepts queries", func() error {
		r := run(t, theLab.CommandContext(bounded(t), lab.Client, client("pg_isready")...))
		if r.code != 0 {
			return fmt.Errorf("pg_isready: %s", r.stdout)
		}
		return nil
	})
	inClient(t, client("pgbench", "-i", "-q")...)

	// It would run for an hour; its own alarm, sent early, ends it in order.
	bench := theLab.CommandContext(bounded(t), lab.Client, client("pgbench", "-c", "4", "-P", "1", "-T", "3600")...)
	var summary strings.Builder
	bench.Stdout = &summary
	progress, err := bench.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bench.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(progress); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = bench.Process.Kill()
			for range lines {
			}
			_ = bench.Wait()
		}
	})
	awaitProgress := func() {
		t.Helper()
		for line := range lines {
			if strings.HasPrefix(line, "progress:") {
				return
			}
			t.Log(line)
		}
		t.Error("pgbench has ended")
	}
	awaitProgress()
	for _, host := range []string{"b", "c"} {
		server.move(host)
		awaitProgress()
	}
	if err := bench.Process.Signal(syscall.SIGALRM); err != nil {
		t.Fatal(err)
	}
	for range lines {
	}
	ended = true
	if err := bench.Wait(); err != nil {
		t.Errorf("pgbench: %v", err)
	}
	t.Log(summary.String())
	if !regexp.MustCompile(`(?m)^number of failed transactions: 0 `).MatchString(summary.String()) {
		t.Error("transactions have failed")
	}
	// The sums are what the transactions left: pgbench's own invariant.
	sums := inClient(t, client("psql", "-At", "-c", `select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
		and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)`)...)
	if strings.TrimSpace(sums) != "t" {
		t.Errorf("the sums of the tables agree: %q; want t", sums)
	}
	if owner := server.exec("stat", "-c", "%U", "/var/lib/postgresql/data/PG_VERSION"); owner != "postgres" {
		t.Errorf("the data belong to %q", owner)
	}
}
