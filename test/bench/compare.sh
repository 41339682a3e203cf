#!/bin/bash
# Compares the Go benchmarks of the working tree with those of a commit: builds
# both, runs them in turns, and has benchstat report what has changed.
#
# usage: test/bench/compare.sh REF
#   COUNT=6          rounds
#   BENCH=.          which benchmarks, as for go test -bench
#   SKIP=...         which not, by default those that take minutes
#   BENCHTIME=200ms  time for each
#   BENCHSTAT=benchstat
set -euo pipefail

ref=${1:?usage: test/bench/compare.sh REF}
count=${COUNT:-6} bench=${BENCH:-.} skip=${SKIP:-Open|Fsck|BesideGC} benchtime=${BENCHTIME:-200ms} benchstat=${BENCHSTAT:-benchstat}
# Those that need no server, and no minutes.
packages=(layout mapproxy mapproxy/sectormap rcache wlog .)
root=$(git rev-parse --show-toplevel)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

mkdir "$dir/old"
git -C "$root" archive "$ref" | tar -x -C "$dir/old"

# build TREE SIDE builds the benchmarks of a tree, which may lack a package.
build() {
	for p in "${packages[@]}"; do
		[[ -d $1/internal/bs3/$p ]] || continue
		(cd "$1" && go test -c -o "$dir/$2-${p//\//_}.test" "./internal/bs3/$p")
	done
}
build "$dir/old" old
build "$root" new

for ((i = 1; i <= count; i++)); do
	for side in $( ((i % 2)) && echo old new || echo new old); do
		for p in "${packages[@]}"; do
			test=$dir/$side-${p//\//_}.test
			[[ -x $test ]] || continue
			echo "pkg: bs3/internal/bs3/$p" >>"$dir/$side.txt"
			(cd "$dir" && "$test" -test.run '^$' -test.bench "$bench" -test.skip "$skip" -test.benchmem \
				-test.benchtime "$benchtime" -test.timeout 30m) | grep -v '^pkg:' >>"$dir/$side.txt"
		done
	done
	echo "round $i of $count" >&2
done
"$benchstat" "$ref=$dir/old.txt" "tree=$dir/new.txt"
