#!/bin/bash
# Measures what the NBD transport costs: bs3's null volume against nbdkit's, at
# 4 KiB and depth 32 over a unix socket, with fio's nbd engine. It prints the
# requests per second of each run, the ratio of each pair, and the median of
# PAIRS pairs, once for random writes and once for random reads. A control,
# nbdkit against a second nbdkit, is measured in between in the same way: the
# machine was quiet enough only if its median is within 10 % of 1. Otherwise the
# measurement is repeated, at most TRIES times.
#
# If other work cannot be stopped, real-time priority keeps it out (root):
# chrt -f 10 test/nbdnull.sh
#
# usage: test/nbdnull.sh [path of bs3]
#   PAIRS=5 RUNTIME=3 (seconds a run) TRIES=5 in the environment
#
# exit status: 0 all ratios are at least 1, 1 one is not, 2 an error or a failed
# request, 3 the machine was never quiet
set -euo pipefail

bs3=${1:-./bs3}
pairs=${PAIRS:-5} runtime=${RUNTIME:-3} tries=${TRIES:-5}
for program in fio nbdkit nbdinfo python3 "$bs3"; do
	command -v "$program" >/dev/null || { echo "nbdnull: $program is missing" >&2; exit 2; }
done

dir=$(mktemp -d)
servers=()
finish() {
	((${#servers[@]})) && kill "${servers[@]}" 2>/dev/null
	wait
	rm -rf "$dir"
}
trap finish EXIT

uri() { echo "nbd+unix:///?socket=$dir/$1.sock"; }

BS3_NULL=true BS3_TRANSPORT=nbd BS3_STATE_PATH="$dir/state" BS3_NBD_LISTEN="unix:$dir/bs3.sock" BS3_LOG_LEVEL=3 "$bs3" &
servers+=($!)
for name in nbdkit control; do
	nbdkit -f -U "$dir/$name.sock" null 8G &
	servers+=($!)
done
i=0
for name in bs3 nbdkit control; do
	until nbdinfo --size "$(uri $name)" >/dev/null 2>&1; do
		kill -0 "${servers[i]}" || { echo "nbdnull: $name has ended" >&2; exit 2; }
		sleep 0.1
	done
	((++i))
done

# run SERVER RW prints requests per second.
run() {
	fio --name=null --ioengine=nbd --uri="$(uri "$1")" --rw="$2" --bs=4k --iodepth=32 --size=8g \
		--time_based --ramp_time=300ms --runtime="$runtime" --output-format=json --output="$dir/out" >/dev/null
	python3 - "$dir/out" <<-'PY'
		import json, sys
		text = open(sys.argv[1]).read()
		job = json.loads(text[text.index("{"):])["jobs"][0]
		rate = job["read"]["iops"] + job["write"]["iops"]
		if job["error"] or rate < 1:
		    sys.exit("nbdnull: requests failed: errno %d" % job["error"])
		print(round(rate))
	PY
}

median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }
ratio() { awk "BEGIN { printf \"%.3f\", $1 / $2 }"; }

# measure RW prints its pairs and sets result and control to the medians.
measure() {
	local results=() controls=() a b c d
	for ((i = 1; i <= pairs; i++)); do
		# The order within a pair alternates, so that a drift favours nobody.
		if ((i % 2)); then
			a=$(run bs3 "$1") b=$(run nbdkit "$1") c=$(run control "$1") d=$(run nbdkit "$1")
		else
			b=$(run nbdkit "$1") a=$(run bs3 "$1") d=$(run nbdkit "$1") c=$(run control "$1")
		fi
		results+=("$(ratio "$a" "$b")") controls+=("$(ratio "$c" "$d")")
		echo "$1 pair $i: bs3 $a nbdkit $b ratio ${results[-1]}; control $c nbdkit $d ratio ${controls[-1]}"
	done
	result=$(median "${results[@]}") control=$(median "${controls[@]}")
	echo "$1: median $result, control $control"
}

status=0
for rw in randwrite randread; do
	for ((t = 1; ; t++)); do
		measure $rw
		awk "BEGIN { exit !($control >= 0.9 && $control <= 1.1) }" && break
		((t < tries)) || { echo "$rw: the machine is not quiet"; exit 3; }
		echo "$rw: the machine is not quiet, trying again"
	done
	awk "BEGIN { exit !($result >= 1) }" || status=1
done
exit $status
