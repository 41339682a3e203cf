# For the scripts in the guest: a daemon with a block device, and small things.
# They run in /x, where all.sh puts the programs.
set -euo pipefail
log=/tmp/daemon.log
: > $log

fail() {
  echo "FAIL: $*"
  tail -50 $log
  dmesg | tail -20
  exit 1
}
trap 'rc=$?; [ $rc = 0 ] || { echo "--- the daemon said:"; tail -50 $log; dmesg | tail -20; }' EXIT

# until_ SECONDS COMMAND... waits for COMMAND to succeed.
until_() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# start_ublk OPTIONS... starts ublkd, and sets $daemon and $dev.
start_ublk() {
  rm -f /tmp/dev
  ./ublkd "$@" > /tmp/dev 2>> $log &
  daemon=$!
  until_ 60 test -s /tmp/dev || fail "no block device"
  dev=$(cat /tmp/dev)
}

# stop_daemon stops it cleanly; its device has to go.
stop_daemon() {
  kill -TERM "$daemon"
  local rc=0
  wait "$daemon" || rc=$?
  [ $rc = 0 ] || fail "the daemon ended with $rc"
  [ ! -e "$dev" ] || fail "$dev is still there"
}

kill_daemon() {
  kill -KILL "$daemon"
  wait "$daemon" 2>/dev/null || true
}

# same FILE WANT compares what a file of sysfs says.
same() {
  local got
  got=$(cat "$1")
  [ "$got" = "$2" ] || fail "$1 is $got, want $2"
}

# sums DIR lists the checksums of what is below DIR.
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
