# Functions for the scripts in the guest, which run in /x, where all.sh puts the
# programs.
set -euo pipefail
log=/tmp/daemon.log
: > $log

fail() {
  echo "FAIL: $*"
  exit 1
}
trap 'rc=$?; [ $rc = 0 ] || { echo "--- log of the daemon:"; tail -50 $log; dmesg | tail -20; }' EXIT

# await WHAT COMMAND... waits for WHAT, which is when COMMAND succeeds. There is no
# limit but that of the machine: emulation, or a loaded host, may take its time.
# What hangs can be seen in the output.
await() {
  local what=$1 begin=$SECONDS said=
  shift
  until "$@"; do
    [ -n "$said" ] || [ $((SECONDS - begin)) -lt 30 ] || { said=1; echo "waiting for $what"; }
    sleep 0.1
  done
}

# use TRANSPORT chooses ublk, or nbd for a device of the kernel's NBD client. The
# volume has 1 GB and is in a directory.
use() {
  transport=$1
  unset BS3_NBD_DEVICE
  export BS3_TRANSPORT=$1 BS3_STORE=dir BS3_DIR_PATH=/tmp/store BS3_STATE_PATH=/run/bs3/vm BS3_SIZE=1 \
    BS3_WRITE_MEMORY=64 BS3_READ_CACHESIZE=64 BS3_LOG_PRETTY=false
  case $1 in
  ublk) modprobe ublk_drv ;;
  nbd) modprobe nbd && export BS3_NBD_DEVICE=/dev/nbd0 ;;
  esac
}

# start starts the daemon, and sets $daemon and, when it serves, $dev.
start() {
  local from
  from=$(($(wc -l < $log) + 1))
  ./bs3 >> $log 2>&1 &
  daemon=$!
  await "the daemon to serve" served "$from"
}
served() {
  local line
  line=$(tail -n "+$1" $log | grep '"message":"serving"') && {
    dev=$(sed -n 's/.*"device":"\([^"]*\)".*/\1/p' <<< "$line")
    return 0
  }
  kill -0 "$daemon" 2>/dev/null || fail "the daemon has ended"
  return 1
}

# gone reports whether $dev is gone.
gone() {
  case $transport in
  nbd) [ ! -e /sys/block/nbd0/pid ] ;;
  *) [ ! -e "$dev" ] ;;
  esac
}

# stop stops the daemon cleanly, which has to remove its device.
stop() {
  kill -TERM "$daemon"
  local rc=0
  wait "$daemon" || rc=$?
  [ $rc = 0 ] || fail "the daemon ended with $rc"
  gone || fail "$dev is still there"
}

kill_daemon() {
  kill -KILL "$daemon"
  wait "$daemon" 2>/dev/null || true
}

# same FILE WANT compares a file of sysfs with WANT.
same() {
  local got
  got=$(cat "$1")
  [ "$got" = "$2" ] || fail "$1 is $got, want $2"
}

# sums DIR lists the checksums of the files below DIR.
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

# fsck checks the volume in its store.
fsck() { ./bs3 fsck > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail "bs3 fsck"; }; }

# no_errors fails if the kernel has logged I/O errors.
no_errors() { ! dmesg | grep 'I/O error' || fail "I/O errors"; }
