#!/bin/bash
# all.sh [NAME]... runs the tests of guest/ (or those named) in virtual
# machines, one after the other, each in a fresh one. It makes what they need.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
"$here/setup.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/x"
export CGO_ENABLED=0 # the guest has not the libraries of this machine
go build -o "$work/x/" . ./test/vm/ublkd
go test -c -o "$work/x/ublk.test" ./internal/device/ublk
go test -c -o "$work/x/kernel.test" ./internal/device/nbd/kernel
cp "$here/guest/lib.sh" "$work/x/"

names=("$@")
if [ ${#names[@]} = 0 ]; then
  for script in "$here"/guest/*.sh; do
    name=$(basename "$script" .sh)
    [ "$name" = lib ] || names+=("$name")
  done
fi
failed=()
for name in "${names[@]}"; do
  script=$here/guest/$name.sh
  # "# vm: OPTIONS" in a script are options of run.sh; "# systemd: OPTIONS" of systemd.sh.
  how=$here/run.sh options=$(sed -n 's/^# vm: //p' "$script")
  if grep -q '^# systemd:' "$script"; then
    how=$here/systemd.sh options=$(sed -n 's/^# systemd: *//p' "$script")
  fi
  begin=$SECONDS rc=0
  # shellcheck disable=SC2086 # options are words
  "$how" $options -x "$work/x" "$script" > "$work/log" 2>&1 || rc=$?
  if [ $rc = 0 ]; then
    echo "ok   $name ($((SECONDS - begin)) s)"
  else
    failed+=("$name")
    cat "$work/log"
    echo "FAIL $name: exit $rc ($((SECONDS - begin)) s)"
  fi
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
