#!/bin/sh
# Runs a test binary as an ordinary user; `go test -exec` calls it with the binary and its arguments.
# A caller who is an ordinary user already just runs it. Root becomes nobody, with no capability, and
# with a home of its own: the unit tests must neither need root nor be able to change the machine.
set -eu
[ "$(id -u)" = 0 ] || exec "$@"
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
# The go command keeps the binary where only root may look.
cp "$1" "$home/${1##*/}"
binary=$home/${1##*/}
shift
chown -R nobody:nogroup "$home"
HOME=$home TMPDIR=$home XDG_RUNTIME_DIR='' setpriv --reuid nobody --regid nogroup --clear-groups \
	--bounding-set=-all --inh-caps=-all --no-new-privs "$binary" "$@"
