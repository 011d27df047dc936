#!/bin/sh
# Installs what the project needs on a Debian 12 or 13 machine, and nothing that is there already.
#
#   hack/install.sh --check GROUP...   names what is missing, one thing a line (no root needed)
#   hack/install.sh GROUP...           installs it (as root)
#
# Groups are those of packages.txt. Besides packages this brings: Go as new as go.mod asks (build),
# just (always), CRIU (run). What is not a Debian package of this release goes to /usr/local/lib/podd.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/path.sh"
prefix=/usr/local/lib/podd
just_version=1.57.0

say() { printf 'dev: %s\n' "$*"; }
die() { printf 'dev: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
chosen() { case " $groups " in *" $1 "*) ;; *) return 1 ;; esac; }

# --- Debian packages ---------------------------------------------------------------------------

# listed COLUMN: that column (2 package, 3 service) of packages.txt for the chosen groups.
listed() {
	awk -v groups=" $groups " -v column="$1" \
		'!/^#/ && NF && index(groups, " " $1 " ") { print $column }' "$here/packages.txt"
}

# missing_packages: the packages of the chosen groups that are not installed.
missing_packages() {
	wanted=$(listed 2)
	[ -n "$wanted" ] || return 0
	# shellcheck disable=SC2086 # one word a package
	installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ')"
	for package in $wanted; do
		case $installed in *" $package "*) ;; *) printf '%s\n' "$package" ;; esac
	done
}

# apt_install PACKAGE...: installs them without starting any service they bring.
apt_install() {
	log=$(mktemp)
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		# Debian's own way to say that an installation shall start nothing.
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		trap 'exit 1' HUP INT TERM
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	else
		policy=
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -q -o DPkg::Lock::Timeout=600 update >"$log" 2>&1 &&
		apt-get -qy -o DPkg::Lock::Timeout=600 --no-install-recommends install "$@" >>"$log" 2>&1 </dev/null || {
		tail -n 40 "$log" >&2
		die "apt-get could not install: $*
dev: its last words are above and the whole log is $log; mend that (try: apt-get update; apt-get -f install) and run again"
	}
	[ -z "$policy" ] || rm -f "$policy"
	rm -f "$log"
}

# service_of PACKAGE: the service that packages.txt says it brings, or nothing.
service_of() { awk -v package="$1" '$2 == package && $3 != "-" { print $3 }' "$here/packages.txt"; }

install_packages() {
	packages=$(missing_packages)
	[ -n "$packages" ] || return 0
	# shellcheck disable=SC2086 # one word a package
	set -- $packages
	say "installing $# Debian packages: $*"
	apt_install "$@"
	for package in "$@"; do
		service=$(service_of "$package")
		[ -n "$service" ] || continue
		if have systemctl; then
			systemctl --quiet disable "$service" >/dev/null 2>&1 || say "could not disable the service $service; do it by hand if it is not wanted"
		elif have update-rc.d; then
			update-rc.d "$service" disable >/dev/null 2>&1 || true
		fi
	done
}

# --- Go ----------------------------------------------------------------------------------------

# wanted_go: the version that go.mod asks for.
wanted_go() { sed -n -e 's/^toolchain go//p' -e 's/^go //p' "$here/../go.mod" | sort -V | tail -n 1; }

# have_go: true if the Go on PATH is itself, whatever it might fetch, as new as go.mod asks.
have_go() {
	version=$(GOTOOLCHAIN=local go version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p')
	[ -n "$version" ] && dpkg --compare-versions "$version" ge "$(wanted_go)"
}

# install_go: Debian's Go is too old for go.mod but can fetch a newer one, as a module whose digest
# the Go checksum database vouches for. Go 1.21 and later would do that alone; the one of Debian 12
# is older, so it is done here by hand, with the finishing touches that cmd/go gives such a module.
install_go() {
	have_go && return 0
	have go || {
		say "installing Debian's Go, to get the one that go.mod names"
		apt_install golang-go
	}
	version=$(wanted_go)
	say "getting Go $version into $prefix/go"
	work=$(mktemp -d)
	module=golang.org/toolchain@v0.0.1-go$version.$(go env GOOS)-$(go env GOARCH)
	mkdir "$work/m"
	printf 'module fetch\n' >"$work/m/go.mod"
	(
		cd "$work/m"
		GOTOOLCHAIN=local GOFLAGS=-modcacherw GOPATH=$work GOMODCACHE=$work/mod go mod download "$module"
	) >"$work/log" 2>&1 || {
		cat "$work/log" >&2
		rm -rf "$work"
		die "Go $version could not be had from the Go module proxy; put a Go $version or newer on PATH and run again"
	}
	tree=$work/mod/$module
	chmod 755 "$tree"/bin/* "$tree"/pkg/tool/*/*
	find "$tree" -name _go.mod | while read -r file; do
		mv "$file" "${file%_go.mod}go.mod"
	done
	mkdir -p "$prefix"
	rm -rf "$prefix/go" "$prefix/go.new"
	cp -R "$tree" "$prefix/go.new"
	mv "$prefix/go.new" "$prefix/go"
	rm -rf "$work"
	have_go || die "$prefix/go/bin/go does not run; remove $prefix/go and run again"
}

# --- just --------------------------------------------------------------------------------------

# install_just: Debian 13 has a package; on Debian 12 the npm registry has the same program. Of the
# package rust-just this takes the part for this machine, which is the program; the rest is a script
# that would start node at each use.
install_just() {
	have just && return 0
	if [ -n "$(apt-cache show just 2>/dev/null)" ]; then
		say "installing just"
		apt_install just
		return 0
	fi
	have npm || {
		say "installing npm, to get just (this Debian has no package of it)"
		apt_install npm
	}
	case $(uname -m) in
	x86_64) part=rust-just-linux-x64 ;;
	aarch64) part=rust-just-linux-arm64 ;;
	*) die "no just is known for $(uname -m): put any 'just' on PATH and run again" ;;
	esac
	say "installing just $just_version"
	mkdir -p "$prefix/just"
	npm install --loglevel=error --no-audit --no-fund --ignore-scripts --prefix "$prefix/just" "$part@$just_version" </dev/null >/dev/null ||
		die "npm could not install $part $just_version: put any 'just' on PATH and run again"
	program=$(find "$prefix/just/node_modules/$part" -name just -type f | head -n 1)
	[ -n "$program" ] || die "there is no program in $part $just_version: put any 'just' on PATH and run again"
	chmod 755 "$program"
	mkdir -p /usr/local/bin
	ln -sfn "$program" /usr/local/bin/just
}

# --- what to do --------------------------------------------------------------------------------

check() {
	missing_packages
	have just || echo just
	if chosen build && ! have_go; then echo "Go $(wanted_go)"; fi
	if chosen run && ! "$here/criu.sh" --check; then echo CRIU; fi
}

if [ "${1-}" = --check ]; then
	shift
	groups=$*
	check
	exit 0
fi
groups=$*
[ "$(id -u)" = 0 ] || die "installing needs root"
# Two at once would undo each other's half-done work; the second finds everything there.
mkdir -p "$prefix"
exec 9>"$prefix/.lock"
flock 9
install_packages
if chosen build; then install_go; fi
install_just
if chosen run; then "$here/criu.sh"; fi
