#!/usr/bin/env bash
# model/check.sh [-DNAME=VALUE...]        checks the model of the move with the code as it is, or as the values say
# model/check.sh quick                    the same without the largest run
# model/check.sh flags                    shows that each decision of the code matters: without it there is a counterexample
# `just model` calls it. Needs spin and a C compiler, half a gigabyte to a gigabyte per run, and two processors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# model NAME: the file that a run is of.
model() {
	case $1 in
	memory*) echo memory.pml ;;
	*) echo move.pml ;;
	esac
}

# verify NAME PAN-FLAGS -DNAME=VALUE...: one exhaustive run. Says what it found; fails on a violation.
# The log stays in $work/NAME/log.
verify() {
	local name=$1 compile=$2
	shift 2
	mkdir "$work/$name"
	cp "$(model "$name")" "$work/$name/model.pml"
	(
		cd "$work/$name"
		if ! spin -a "$@" model.pml >spin.log 2>&1; then
			cat spin.log >&2
			exit 2
		fi
		# shellcheck disable=SC2086 # several flags
		gcc -O2 -DCOLLAPSE -DMEMLIM=3000 $compile -o pan pan.c
		local options="-E -m1000000 -w25"
		[[ $compile != *-DNP* ]] || options+=" -l"
		# shellcheck disable=SC2086 # several options
		./pan $options >log 2>&1 || true
		if grep -q 'max search depth too small\|out of memory\|-DMEMLIM\|memory limit' log; then
			echo "$name: the search was not exhaustive:" >&2
			grep 'error\|memory' log >&2
			exit 2
		fi
		if ! grep -q 'errors: 0$' log; then
			exit 1
		fi
		awk -v name="$name" '/states, stored/ { states = $1 } /elapsed time/ { time = $4 } /total actual memory/ { memory = $1 }
			END { printf "%-22s %11d states %6.1f s %6d MB\n", name, states, time, memory }' log
	)
}

# violated NAME -DNAME=VALUE...: the property that a run found violated.
violated() {
	local at file
	file=$(model "$1")
	at=$(cd "$work/$1" && shift && spin -t "$@" model.pml 2>&1 | sed -n 's/^spin: \(.*\):\([0-9]*\), Error: assertion violated.*/\1 \2/p' | head -n 1)
	case $at in
	model.pml*) echo "$file:${at#* } $(sed -n "${at#* }p" "$file" | sed 's/^[[:space:]:]*//; s/[[:space:]]\+/ /g')" ;;
	*) echo "a run that never ends" ;;
	esac
}

# scenario NAME -DNAME=VALUE...: the lines of the model that lead to it, and whose they are. Conditions are left out.
scenario() {
	(
		cd "$work/$1"
		shift
		spin -t -p "$@" model.pml | awk '
			NR == FNR { gsub(/^[ \t:]+|[ \t]*(\/\*.*)?$/, ""); source[FNR] = $0; next }
			!/^ *[0-9]+:\tproc +[0-9]/ || /:init:/ || /\t\[[(.]|\[(else|break|goto)/ { next }
			match($0, /model.pml:[0-9]+/) {
				line = substr($0, RSTART + 10, RLENGTH - 10)
				split($0, part, /[()]/)
				sub(/:.*/, "", part[2])
				if (part[2] line == last) next
				last = part[2] line
				printf "    %-8s %4d  %s\n", part[2], line, source[line]
			}' model.pml -
	)
}

# The runs, two at a time. Bounds are explained in README.md.
declare -A runs=(
	[one-move-three-faults]="-DMOVES=1 -DFAULTS=3 -DENDS=1 -DPROXY=0"
	[two-moves]="-DMOVES=2 -DFAULTS=1 -DENDS=1 -DPROXY=0"
	[proxy]="-DMOVES=1 -DFAULTS=2 -DENDS=0 -DPROXY=1"
	[proxy-end]="-DMOVES=1 -DFAULTS=1 -DENDS=1 -DPROXY=1"
	[nothing-for-ever]="-DMOVES=1 -DFAULTS=2 -DENDS=1 -DPROXY=0"
	[memory]="-DFAULTS=4"
)

check() {
	local name failed=0 large="proxy two-moves proxy-end"
	if [ "${1-}" = quick ]; then
		large="two-moves proxy-end"
		shift
	fi
	# Small ones first: they find almost everything, and then the others are not needed.
	for names in "memory one-move-three-faults nothing-for-ever" "$large"; do
		for name in $names; do
			while (($(jobs -rp | wc -l) >= 2)); do wait -n || true; done
			(
				kind="-DSAFETY"
				# Any cycle is one without progress, for no progress is marked: so every run ends.
				[ "$name" != nothing-for-ever ] || kind="-DNP"
				code=0
				# shellcheck disable=SC2086 # several definitions
				verify "$name" "$kind" ${runs[$name]} "$@" || code=$?
				echo $code >"$work/$name.code"
			) &
		done
		wait
		for name in $names; do
			case $(cat "$work/$name.code") in
			0) ;;
			1)
				# shellcheck disable=SC2086
				echo "$name: VIOLATED: $(violated "$name" ${runs[$name]} "$@")"
				# shellcheck disable=SC2086
				((failed)) || scenario "$name" ${runs[$name]} "$@"
				failed=1
				;;
			*) failed=1 ;;
			esac
		done
		((failed == 0)) || exit 1
	done
	unreached
}

# unreached: statements that never happened in the run that is rich enough for their process, but for the ends of
# what never ends, and for those that say "unreached" themselves.
unreached() {
	local line text failed=0
	while IFS=$'\t' read -r process text; do
		line=${text%%,*}
		# In an atomic nobody can be killed.
		case $text in *'"-end-"' | *'"(!(up'*) continue ;; esac
		! sed -n "${line}p" move.pml | grep -q 'unreached' || continue
		echo "never reached: move.pml:$text ($process)" >&2
		failed=1
	done < <(
		never one-move-three-faults 'source|session|target|criu'
		never proxy-end 'proxy|trouble'
	)
	return $failed
}

# never RUN PROCESSES: what pan says was not reached.
never() {
	awk -v want="^($2)\$" '/^unreached in/ { process = $NF }
		/^\tmodel.pml:/ && process ~ want { sub(/^\tmodel.pml:/, ""); sub(/, state [0-9]+/, ""); print process "\t" $0 }' "$work/$1/log" | sort -u
}

flags() {
	sharp move "-DMOVES=1 -DFAULTS=2 -DENDS=1 -DPROXY=0" && sharp memory -DFAULTS=2
}

# sharp MODEL BOUNDS: that each decision in a model matters.
sharp() {
	local flag missing=0 all=() bounds=$2
	mapfile -t names < <(sed -n 's/^#define \([A-Z_]*\) [01]$/\1/p' "$1.pml")
	for flag in "${names[@]}"; do all+=("-D$flag=1"); done
	for flag in "${names[@]}"; do
		local code=0 name=$1-$flag
		# shellcheck disable=SC2086
		verify "$name" -DSAFETY $bounds "${all[@]/-D$flag=1/-D$flag=0}" >/dev/null || code=$?
		if ((code == 1)); then
			# shellcheck disable=SC2086
			printf '%-18s without it: %s\n' "$flag" "$(violated "$name" $bounds "${all[@]/-D$flag=1/-D$flag=0}")"
		else
			echo "$flag: no counterexample without it" >&2
			missing=1
		fi
	done
	return $missing
}

if [ "${1-}" = flags ]; then
	flags
else
	check "$@"
fi
