# The project's recipes. `./dev RECIPE` installs what a recipe needs and runs it; with everything
# installed, `just RECIPE` does the same.

set shell := ["bash", "-euo", "pipefail", "-c"]

# libcontainer makes pods' system call filters with libseccomp, by this tag and cgo.
tags := "seccomp"
version := `git describe --tags --always --dirty 2>/dev/null || echo devel`
ldflags := "-X podd/version.number=" + version
runc := "github.com/opencontainers/runc@v1.4.3"
staticcheck := "honnef.co/go/tools/cmd/staticcheck@v0.8.2"

# Tests and programs that need root get it from sudo where the caller is an ordinary user.
sudo := if `id -u` == "0" { "" } else { "sudo env PATH=" + env("PATH") }
# And unit tests get an ordinary user where the caller is root.
unprivileged := justfile_directory() / "hack/as-nobody.sh"

# List the recipes
[private]
default:
    @just --list --unsorted

# Build bin/podd, bin/podproxy, bin/podctl, bin/podinit and bin/podd-pagefilter.so
build: podinit pagefilter
    CGO_ENABLED=1 go build -trimpath -tags '{{tags}}' -ldflags '{{ldflags}}' -o bin/ ./cmd/podd ./cmd/podproxy ./cmd/podctl

# The init of every pod is bound into images of any kind: it must not need a library of theirs.
[private]
podinit:
    @mkdir -p bin
    {{env("CC", "cc")}} -static -O2 -Wall -Wextra -o bin/podinit namespace/podinit/podinit.c

# CRIU loads it in a dump: as little as possible, with nothing but the C library.
[private]
pagefilter:
    @mkdir -p bin
    {{env("CC", "cc")}} -shared -fPIC -O2 -Wall -Wextra -o bin/podd-pagefilter.so checkpoint/pagefilter/*.c

# All checks: lint, unit tests, a little fuzzing, the model of a move, tests that need root, end-to-end tests
test: lint test-unit (fuzz "2s") (model "quick") test-root test-e2e

# Unit tests, as an ordinary user, with the race detector
test-unit *packages="./...":
    go test -race -tags '{{tags}}' -exec '{{unprivileged}}' {{packages}}

# Tests that need root, CRIU and namespaces, one package at a time
test-root *packages: podinit
    go test -race -tags '{{tags}},root' -p 1 -exec '{{sudo}}' \
        {{ if packages == "" { "$(grep -rl --include='*_test.go' '^//go:build root' . | xargs -r dirname | sort -u)" } else { packages } }}

# End-to-end tests: real programs moved between hosts of a lab
test-e2e *args: build
    go test -tags '{{tags}},e2e' -p 1 -count 1 -timeout 60m -exec '{{sudo}}' ./e2e/... {{args}}

# The end-to-end tests with memory carried by one strategy after the other: -run NAME takes some
strategies *args: build
    failed=; for strategy in stop-copy pre-copy post-copy checkpoint-server; do \
        go test -tags '{{tags}},e2e' -count 1 -timeout 60m -exec '{{sudo}}' ./e2e -strategy "$strategy" {{args}} || failed+=" $strategy"; \
    done; test -z "$failed" || { echo "failed:$failed" >&2; exit 1; }

# Every fault at every stage of a move, every partition (test-e2e has a sample); -strategy NAME takes another
faults *args: build
    go test -tags '{{tags}},faults' ./fault
    go test -tags '{{tags}},e2e' -p 1 -count 1 -timeout 120m -exec '{{sudo}}' \
        -run '^(TestFaults|TestExtraFaults|TestPartitions|TestMemoryArrives)$' ./e2e -faults {{args}}

# Twenty pods moving at random for ten minutes while daemons fail at random: -seed N repeats a run
soak *args: build
    go test -tags '{{tags}},e2e' -p 1 -count 1 -timeout 60m -exec '{{sudo}}' \
        -run '^TestSoak$' -v ./e2e -soak.time 10m -soak.pods 20 {{args}}

# Feed every parser of what comes from outside with any bytes, each for a while
fuzz time="5s":
    hack/fuzz.sh {{time}}

# Check the protocol of a move with spin, in every order of events; model/README.md explains it
model *args:
    model/check.sh {{args}}

# Show a live desktop session moving between hosts while its client stays connected
demo *args: build
    {{sudo}} bin/podctl demo {{args}}

# Install what was built, and the systemd units, on this machine
install prefix="/usr/local": build
    {{sudo}} install -D -t '{{prefix}}/bin' bin/podd bin/podproxy bin/podctl bin/podinit bin/podd-pagefilter.so
    sed 's|/usr/local/bin|{{prefix}}/bin|' packaging/systemd/podd.service | {{sudo}} install -D -m 644 /dev/stdin /etc/systemd/system/podd.service
    sed 's|/usr/local/bin|{{prefix}}/bin|' packaging/systemd/podproxy.service | {{sudo}} install -D -m 644 /dev/stdin /etc/systemd/system/podproxy.service

# Measure podd side by side with others: `just bench [move|create|path|thesis]... [flags]`, -h lists the flags
bench *args: build peers
    CGO_ENABLED=1 go build -trimpath -tags '{{tags}}' -ldflags '{{ldflags}}' -o bin/ ./bench
    {{sudo}} bin/bench {{args}}

# The container runtimes that the benchmark compares with, besides Debian's
[private]
peers:
    @test -x bin/peers/runc || GOBIN='{{justfile_directory()}}/bin/peers' CGO_ENABLED=1 go install -tags seccomp {{runc}}

# Formatting, vet, staticcheck, shellcheck, and that no test can be skipped
lint:
    hack/lint.sh '{{tags}}' '{{staticcheck}}'

# Format the Go code
fmt:
    gofmt -l -w $(git ls-files --cached --others --exclude-standard '*.go')

# Regenerate the protobuf and Connect code (the result is committed)
generate:
    protoc -I api --go_out=api --go_opt=paths=source_relative \
        --connect-go_out=api --connect-go_opt=paths=source_relative \
        --plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
        --plugin=protoc-gen-connect-go="$(go tool -n protoc-gen-connect-go)" \
        $(cd api && find . -name '*.proto' -printf '%P\n' | sort)

# Remove what was built
clean:
    rm -rf bin
