#!/bin/bash
# all.sh [NAME]... runs the tests of guest/, or those named, one after the other,
# each in a fresh virtual machine. It builds what they need. If $VMLOGS is set, it
# keeps their output there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
"$here/setup.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/x"
export CGO_ENABLED=0 # the guest lacks the libraries of this machine
go build -o "$work/x/" . ./test/vm/stamp
go test -c -o "$work/x/ublk.test" ./internal/device/ublk
go test -c -o "$work/x/kernel.test" ./internal/device/nbd/kernel
cp "$here/guest/lib.sh" "$work/x/"
cp -r Makefile README.md CHANGELOG.md config.toml contrib docs "$work/x/" # for make install

# comment SCRIPT NAME prints the text of the comment "# NAME: ..." in a script.
comment() { sed -n "s/^# $2: *//p" "$1"; }

# boot SCRIPT ARGUMENTS runs a script once, with the disks of its test.
boot() {
  local how=$here/run.sh options
  options=$(comment "$1" vm | sed "s#-d #-d $work/disks/#g")
  if grep -q '^# systemd:' "$1"; then
    how=$here/systemd.sh options=$(comment "$1" systemd)
  fi
  # shellcheck disable=SC2086 # options are words
  "$how" $options ${2:+-a "$2"} -x "$work/x" "$1"
}

# try SCRIPT WITH boots a script as often as it requires.
try() {
  local boots n
  boots=$(comment "$1" boots)
  rm -rf "$work/disks"
  mkdir "$work/disks"
  for n in $(seq "${boots:-1}"); do
    boot "$1" "${2:+$2${boots:+,$n}}" || return
  done
}

names=("$@")
if [ ${#names[@]} = 0 ]; then
  for script in "$here"/guest/*.sh; do
    name=$(basename "$script" .sh)
    [ "$name" = lib ] || names+=("$name")
  done
fi
failed=()
for name in "${names[@]}"; do
  # NAME-WITH runs the script with only one of its arguments.
  script=$here/guest/$name.sh with=
  [ -e "$script" ] || script=$here/guest/${name%-*}.sh with=${name##*-}
  list=${with:-$(comment "$script" with)}
  for w in ${list:-none}; do
    what=$(basename "$script" .sh) arg=
    [ "$w" = none ] || what=$what-$w arg=$w
    begin=$SECONDS rc=0
    try "$script" "$arg" > "$work/log" 2>&1 || rc=$?
    [ -z "${VMLOGS:-}" ] || cp "$work/log" "$VMLOGS/$what.log"
    if [ $rc = 0 ]; then
      echo "ok   $what ($((SECONDS - begin)) s)"
      grep -E '(, ratio |prefix held)' "$work/log" | sed 's/^/     /' || true
    else
      failed+=("$what")
      cat "$work/log"
      echo "FAIL $what: exit $rc ($((SECONDS - begin)) s)"
    fi
  done
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
