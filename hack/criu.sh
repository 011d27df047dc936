#!/bin/sh
# Puts a CRIU that podd can use on root's PATH. ./dev calls it.
#
#   hack/criu.sh           does it (as root)
#   hack/criu.sh --check   tells by its exit code whether it was done, for this kernel (no root needed)
#
# podd needs CRIU 4.2 or newer: on Linux 6.16+ older ones fail on every TCP socket. Where a criu of
# that age that passes `criu check` is on PATH already, nothing is done. Otherwise Debian sid's
# package is taken, with the libraries it lists, into a folder of its own; the one binary is pointed
# at the C library beside it, so no other program of the machine sees any of it.
# To undo: rm -r /usr/local/lib/podd/criu* /usr/local/sbin/criu
set -eu

minimum=4.2
prefix=/usr/local/lib/podd/criu
link=/usr/local/sbin/criu
stamp_file=$prefix.stamp
shim_source=$(dirname "$0")/criu-rlimit-shim.c
# Part of the stamp: raise it when this script starts to install something else.
recipe=1

say() { printf 'criu: %s\n' "$*"; }
die() { printf 'criu: error: %s\n' "$*" >&2; exit 1; }

# missing_cap_sys_resource: true where root here cannot have CAP_SYS_RESOURCE (bit 24).
missing_cap_sys_resource() {
	bounding=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)
	[ $((0x$bounding >> 24 & 1)) -eq 0 ]
}

# version_of CRIU: its version number, or nothing.
version_of() { "$1" --version 2>/dev/null | sed -n 's/^Version: //p'; }

# good_enough CRIU: true if it is new enough and the kernel has what it needs.
good_enough() {
	version=$(version_of "$1")
	[ -n "$version" ] && dpkg --compare-versions "$version" ge "$minimum" && "$1" check >/dev/null 2>&1
}

# debian_mirror: the address of the Debian archive that this machine itself installs from.
debian_mirror() {
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
		sed -n 's/^Debian|Debian|//p' | head -n 1
}

# fetch_from_sid DIR: downloads sid's criu and all it depends on into DIR/cache/archives, by an apt
# configuration of its own: the machine's sources, lists, caches and installed packages are neither
# used nor changed. apt checks the archive's signature and every package's digest as it always does.
fetch_from_sid() {
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || die "no Debian mirror in this machine's apt sources (run apt-get update?), so there is nowhere to take CRIU $minimum from"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] || die "$keyring is missing: install debian-archive-keyring"
	mkdir -p "$1/state/lists/partial" "$1/cache/archives/partial"
	: >"$1/status"
	printf 'deb [signed-by=%s] %s sid main\n' "$keyring" "$mirror" >"$1/sources.list"
	cat >"$1/apt.conf" <<-EOF
		Dir::State "$1/state/";
		Dir::State::status "$1/status";
		Dir::Cache "$1/cache/";
		Dir::Etc::SourceList "$1/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::Etc::Preferences "/dev/null";
		Dir::Etc::PreferencesParts "/dev/null";
		Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
		Acquire::Languages "none";
		APT::Sandbox::User "root";
	EOF
	APT_CONFIG=$1/apt.conf apt-get -q update >"$1/log" 2>&1 &&
		APT_CONFIG=$1/apt.conf apt-get -qy --no-install-recommends --download-only install criu >>"$1/log" 2>&1 || {
		cat "$1/log" >&2
		die "downloading criu from Debian sid ($mirror) failed; apt's own words are above"
	}
}

# unpack_to DIR FROM: unpacks every package in FROM into DIR and binds the criu in it to its own libraries.
unpack_to() {
	rm -rf "$1"
	mkdir -p "$1"
	for deb in "$2"/*.deb; do
		dpkg-deb --extract "$deb" "$1"
	done
	binary=$1/usr/sbin/criu
	libc=$(find "$1" -name libc.so.6 | head -n 1)
	interpreter=$1/usr$(patchelf --print-interpreter "$binary")
	[ -e "$interpreter" ] || interpreter=${interpreter#"$1/usr"} interpreter=$1$interpreter
	[ -n "$libc" ] && [ -e "$interpreter" ] || die "sid's C library is not laid out as expected in $1"
	libraries=$(dirname "$libc")
	# RPATH, not RUNPATH: it holds for the libraries' own dependencies too.
	patchelf --set-interpreter "$interpreter" --force-rpath --set-rpath "$libraries" "$binary"
	if missing_cap_sys_resource; then
		say "root lacks CAP_SYS_RESOURCE here: adding a development aid, so that other users' processes can be dumped"
		cc -shared -fPIC -O2 -Wall -Wextra -o "$libraries/podd-criu-rlimit.so" "$shim_source" ||
			die "compiling $shim_source failed"
		# Linked in and not preloaded: the programs that CRIU runs are left alone.
		patchelf --add-needed podd-criu-rlimit.so "$binary"
	fi
}

shim=none
if missing_cap_sys_resource; then
	shim=$(cksum <"$shim_source")
fi
# What a verdict depends on; after a kernel upgrade it is found again.
stamp="recipe $recipe, Linux $(uname -r), shim $shim"
# The stamp file: the program that was found good, then the stamp it was found with.
found=$(sed -n 1p "$stamp_file" 2>/dev/null || true)
if [ ! -x "$found" ] || [ "$(sed -n 2p "$stamp_file")" != "$stamp" ]; then
	found=
fi
if [ "${1-}" = --check ]; then
	[ -n "$found" ]
	exit
fi

[ "$(id -u)" = 0 ] || die "must run as root"
mkdir -p "$(dirname "$prefix")"
# Only our own can have the aid for machines without CAP_SYS_RESOURCE.
if [ -z "$found" ] && [ "$shim" = none ]; then
	found=$(command -v criu || true)
fi
if [ -n "$found" ] && good_enough "$found"; then
	say "$found is $(version_of "$found"): good"
	printf '%s\n%s\n' "$found" "$stamp" >"$stamp_file"
	exit 0
fi

if [ -e "$link" ] && [ ! -L "$link" ]; then
	die "$link is in the way: it is neither ours nor a criu $minimum that passes 'criu check'; move it away"
fi
say "getting CRIU $minimum or newer from Debian sid into $prefix"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch_from_sid "$work"
unpack_to "$prefix" "$work/cache/archives"
version=$(version_of "$prefix/usr/sbin/criu")
[ -n "$version" ] || die "the criu just unpacked does not start: try $prefix/usr/sbin/criu --version"
dpkg --compare-versions "$version" ge "$minimum" || die "Debian sid has criu $version, but $minimum or newer is needed"
"$prefix/usr/sbin/criu" check >"$work/check" 2>&1 || {
	cat "$work/check" >&2
	die "this kernel ($(uname -r)) lacks something CRIU needs; 'criu check' says what above"
}
mkdir -p "$(dirname "$link")"
ln -sfn "$prefix/usr/sbin/criu" "$link"
printf '%s\n%s\n' "$link" "$stamp" >"$stamp_file"
say "$link is CRIU $version"
