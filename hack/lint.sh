#!/bin/sh
# hack/lint.sh TAGS STATICCHECK: every check that needs no running program. `just lint` calls it.
# All run, even after one has failed; the exit code says whether any did.
set -u
tags=$1
staticcheck=$2
failed=0

# check NAME COMMAND...: runs it, and says which check it was if it fails.
check() {
	name=$1
	shift
	"$@" || {
		echo "lint: $name failed" >&2
		failed=1
	}
}

sources() { git ls-files --cached --others --exclude-standard "$@" | while read -r f; do [ ! -f "$f" ] || printf '%s\n' "$f"; done; }

formatted() {
	unformatted=$(sources '*.go' | xargs -r gofmt -l)
	[ -z "$unformatted" ] || {
		printf 'not gofmt-ed (just fmt): %s\n' "$unformatted" >&2
		return 1
	}
}

# A test that may skip itself proves nothing on the machine where it does.
no_skips() {
	! sources '*_test.go' | xargs grep -nE '\b[tb]\.Skip(f|Now)?\(|testing\.Short\(' /dev/null
}

shell_scripts() {
	# shellcheck disable=SC2046 # no file name here has a blank
	shellcheck -x -S warning dev .ci/run $(sources '*.sh')
}

check gofmt formatted
check "tests without skips" no_skips
check shellcheck shell_scripts
# One pass for the code itself, one for each kind of test: the tags are what go test runs with.
for set in "$tags" "$tags,root" "$tags,e2e,faults"; do
	check "go vet -tags $set" go vet -tags "$set" ./...
done
check staticcheck go run "$staticcheck" -tags "$tags,root,e2e" ./...
exit $failed
