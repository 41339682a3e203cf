#!/usr/bin/env bash
# Shows that the linter guards packages that nobody has named yet: a new package
# of the engine that imports another part, the engine, a store or a transport is
# refused. The tree itself is not touched. Usage: test/lintguard.sh LINTER
set -euo pipefail
linter=$(realpath "$1")
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard -- '*.go' go.mod go.sum .golangci.yml contrib config.toml internal | xargs -0 cp --parents -t "$copy" 2>/dev/null || true
cd "$copy"

# try DIR IMPORT: whether the linter refuses IMPORT in a new package in DIR.
refused() {
  mkdir -p "$1"
  printf '// Package newroom is new.\npackage newroom\n\nimport _ "%s"\n' "$2" > "$1/newroom.go"
  out=$("$linter" run --allow-parallel-runners --enable-only depguard "./$1/" 2>&1) && return 1
  grep -q depguard <<< "$out"
}

for import in bs3/internal/bs3 bs3/internal/bs3/writer bs3/internal/bs3/gc bs3/internal/bs3/objproxy/s3 bs3/internal/device/nbd bs3/internal/config; do
  refused internal/bs3/newroom "$import" || { echo "the linter lets a new package of the engine import $import" >&2; exit 1; }
done
refused internal/bs3/newroom/deep bs3/internal/bs3/reader || { echo "the linter lets a package below a new one import another part" >&2; exit 1; }
refused internal/device/newroom bs3/internal/bs3 || { echo "the linter lets a new transport import the engine" >&2; exit 1; }
if refused internal/bs3/newroom bs3/internal/bs3/volume; then echo "the linter refuses a part what it may know" >&2; exit 1; fi
echo "the linter guards new packages"
