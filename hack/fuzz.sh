#!/bin/sh
# hack/fuzz.sh [TIME]: runs every fuzz target for a while each, 5s by default, two at a time. What
# a target finds is left in its testdata/fuzz, and the exit code says that there was something.
set -eu
time=${1:-5s}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# The output of a target is of interest only if it fails.
run() {
	log=$logs/$2
	# Now and then Go takes the end of the time for a failure (golang.org/issue/75804); what it
	# finds, it writes down.
	if go test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "$time" -parallel 1 >"$log" 2>&1 ||
		{ grep -q '^    context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log"; }; then
		echo "fuzz: $1 $2: $(sed -n 's/^fuzz: elapsed: .*execs: \([0-9]*\).*/\1/p' "$log" | tail -n 1) executions"
	else
		echo "fuzz: $1 $2 failed:" >&2
		cat "$log" >&2
		return 1
	fi
}

# This script calls itself for one target: "hack/fuzz.sh TIME PACKAGE TARGET".
if [ $# -eq 3 ]; then
	run "$2" "$3"
	exit
fi
grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' . | while IFS=: read -r file target; do
	echo "$(dirname "$file") ${target#func }"
done | sort | xargs -P 2 -n 2 "$0" "$time"
