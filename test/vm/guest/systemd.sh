# systemd: -m 3072 -t 2700
# The units of contrib/systemd on a Debian with systemd: make install, start,
# garbage collection, death, watchdog, refusals, fencing, a stop with data that
# nobody has synced, fstab and a reboot.
. ./lib.sh
journalctl --follow --no-tail --output=short-monotonic 'UNIT=bs3.service' + 'SYSLOG_IDENTIFIER=bs3' > $log 2>/dev/null &
export SYSTEMD_COLORS=0 SYSTEMD_PAGER=

property() { systemctl show --value -p "$1" "$2"; }
# becomes UNIT STATE waits for the state of a unit, is UNIT STATE asserts it.
becomes() { await "$1 to be $2" test_becomes "$1" "$2"; }
test_becomes() {
  local state
  state=$(property ActiveState "$1")
  [ "$state" = "$2" ] && return
  if [ "$state" = failed ]; then # for a moment also on the way to a restart
    sleep 2
    ! test_is "$1" failed || fail "$1 has failed"
  fi
  return 1
}
is() { test_is "$1" "$2" || fail "$1 is $(property ActiveState "$1"), not $2"; }
test_is() { [ "$(property ActiveState "$1")" = "$2" ]; }
# said UNIT TEXT waits for a line in the log of a unit.
said() { await "$1 to log: $2" test_said "$1" "$2"; }
test_said() { journalctl --boot -u "$1" --output=cat | grep -q -- "$2"; }
# status UNIT TEXT waits for a text in the unit's status line.
status() { await "the status of $1: $2" test_status "$1" "$2"; }
test_status() { property StatusText "$1" | grep -q -- "$2"; }
test_restarts() { [ "$(property NRestarts bs3)" -ge "$1" ]; }
test_other_pid() { [ "$(property MainPID bs3)" != "$1" ]; }
dropin() { # UNIT LINE...
  mkdir -p "/run/systemd/system/$1.service.d"
  printf '%s\n' "[Service]" "${@:2}" > "/run/systemd/system/$1.service.d/test.conf"
  systemctl daemon-reload
}
healthy() {
  ! dmesg | grep -E 'I/O error|blocked for more|WARNING|BUG' || fail "the kernel complains"
}

if [ -e /root/sums ]; then # after the reboot
  becomes bs3 active
  await "/data to be mounted at boot" mountpoint -q /data
  sums /data | cmp - /root/sums || fail "files have changed over the reboot"
  before=$(journalctl --boot=-1 -u bs3 -u data.mount --output=cat | tail -20)
  sed -n '/Unmounted data.mount/,$p' <<< "$before" | sed -n '/Stopping bs3.service/,$p' | grep -q '"message":"stopped"' ||
    fail "it was not unmounted, and then stopped: $before"
  grep -q '"message":"replayed' /tmp/daemon.log && fail "something was left in memory over a clean shutdown"
  echo "after a reboot: $(wc -l < /root/sums) files in $(findmnt -no SOURCE,FSTYPE /data)"

  umount /data
  make uninstall > /dev/null
  [ ! -e /usr/local/bin/bs3 ] && [ ! -e /usr/local/lib/systemd/system/bs3.service ] || fail "make uninstall left something"
  [ -e /etc/bs3/config.toml ] && [ -d /var/lib/bs3/store ] || fail "make uninstall removed too much"
  becomes bs3 active
  systemctl stop bs3
  exit 0
fi

mkdir -p /var/log/journal && systemctl restart systemd-journald
make install > /dev/null
cat > /etc/bs3/config.toml <<'C'
store = "dir"
size = 1
transport = "ublk"
[dir]
path = "/var/lib/bs3/store"
[ublk]
id = 0
[write]
memory = 64
[log]
pretty = false
C
make install > /dev/null
grep -q 'size = 1$' /etc/bs3/config.toml || fail "make install has replaced a configuration"

# --- start
systemctl enable --now --quiet bs3 bs3-gc.timer
becomes bs3 active
status bs3 '^serving /dev/ublkb0, 1 GB, durable$'
systemctl status bs3 | sed -n '1,9p'
[ "$(systemctl is-active bs3-gc.timer)" = active ] || fail "no timer"
same /sys/block/ublkb0/size $((1 << 21))
pid=$(property MainPID bs3)
[ "$(cat /proc/$pid/oom_score_adj)" = -900 ] || fail "oom_score_adj is $(cat /proc/$pid/oom_score_adj)"
grep -q 'lo ' <(sed -n '/bs3.config.memory/,/VmFlags/p' /proc/$pid/smaps | grep VmFlags) || fail "chunk memory is not locked"
for t in /proc/$pid/task/*; do # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of linux/sched.h
  flags=$(cut -d' ' -f9 $t/stat)
  [ $((flags & 0x180000)) = $((0x180000)) ] || fail "thread $t is no I/O flusher"
done

# --- a file system, by fstab
mkfs.ext4 -q /dev/ublkb0
mkdir /data
echo '/dev/ublkb0 /data ext4 _netdev,nofail,x-systemd.after=bs3.service,x-systemd.device-timeout=infinity 0 0' >> /etc/fstab
systemctl daemon-reload
systemctl start data.mount
cp -r /usr/lib/systemd /data/
dd if=/dev/urandom of=/data/garbage bs=1M count=24 conv=fsync status=none

# --- garbage collection
rm /data/garbage
fstrim /data
systemctl start bs3-gc.service
said bs3 '"message":"garbage collection"'
[ "$(property Result bs3-gc.service)" = success ] || fail "bs3-gc.service: $(property Result bs3-gc.service)"
echo "collection: $(journalctl -u bs3 --output=cat | grep '"garbage collection"' | tail -1)"

# --- death
( i=0
  while [ ! -e /tmp/enough ]; do
    i=$((i + 1))
    dd if=/dev/urandom of=/data/f$i bs=64k count=4 conv=fsync status=none || touch /tmp/failed
  done
  echo $i > /tmp/files ) &
writer=$!
for n in 1 2; do
  sleep 3
  systemctl kill -s KILL bs3
  await "a restart of bs3" test_restarts $n
  becomes bs3 active
done
sleep 3
touch /tmp/enough
wait $writer
[ ! -e /tmp/failed ] || fail "a write failed"
mountpoint -q /data || fail "/data was unmounted"
healthy
echo "killed twice: $(cat /tmp/files) files written meanwhile, $(grep -c 'taking the block device over' $log) takeovers"
sums /data > /tmp/sums
umount /data
# The daemon was started while it was mounted, and must not hold the mount.
await "the last mount of the file system to go" test ! -e /sys/fs/ext4/ublkb0
systemctl start data.mount
sums /data | cmp - /tmp/sums || fail "files have changed over the daemon's death"

# --- stop with data that nobody has synced
cp -r /usr/sbin /data/
sums /data > /tmp/sums
cp lib.sh /data/last
systemctl stop bs3
becomes bs3 inactive
[ "$(property Result bs3)" = success ] || fail "the stop: $(property Result bs3)"
[ ! -e /dev/ublkb0 ] || fail "the device is still there"
# The mount unit went with its device.
becomes data.mount inactive
rm -r /run/bs3/config
systemctl start bs3
systemctl start data.mount
cmp lib.sh /data/last || fail "the last file is lost"
rm /data/last
sums /data | cmp - /tmp/sums || fail "files are lost"
dmesg -C # users of the device after the stop got errors, as they must
echo "stopped with unsynced data: $(wc -l < /tmp/sums) files are the same"

# --- the watchdog
dropin bs3 WatchdogSec=3s
umount /data
systemctl restart bs3 # a new time for the watchdog needs a new daemon
systemctl start data.mount
n=$(property NRestarts bs3)
sleep 8
[ "$(property NRestarts bs3)" = "$n" ] || fail "the watchdog killed a healthy daemon"
pid=$(property MainPID bs3)
dd if=/dev/urandom of=/data/watched bs=64k count=8 conv=fsync status=none
systemctl kill -s STOP --kill-whom=main bs3
await "another daemon than that which stands still" test_other_pid $pid
becomes bs3 active
said bs3 'Watchdog timeout'
dd if=/data/watched of=/dev/null bs=64k status=none
dropin bs3
healthy
echo "the watchdog restarted a daemon that stood still"

# --- refusals: a person has to decide, and nothing retries
cat > /etc/bs3/bucket.toml <<'C'
store = "s3"
size = 1
transport = "nbd"
[s3]
remote = "http://127.0.0.1:9"
[write]
memory = 32
[log]
pretty = false
C
mkdir -p /etc/credstore
echo key > /etc/credstore/bs3.bucket.s3.access_key # and no secret
! systemctl start bs3@bucket 2>/dev/null || fail "bs3 starts with only one of the S3 keys"
[ "$(property ExecMainStatus bs3@bucket)" = 78 ] || fail "exit $(property ExecMainStatus bs3@bucket), not 78"
sleep 3
[ "$(property ActiveState bs3@bucket),$(property NRestarts bs3@bucket)" = failed,0 ] || fail "a refused configuration is retried"
said bs3@bucket 'access_key and secret_key are set both or neither'

# --- a store that is away: a time-out of the unit does no harm
echo secret > /etc/credstore/bs3.bucket.s3.secret_key
dropin bs3@bucket TimeoutStartSec=10s
systemctl start --no-block bs3@bucket
status bs3@bucket '^opening the volume in bucket bs3 at http://127.0.0.1:9; the store does not answer as it should since'
sleep 20
is bs3@bucket activating
systemctl stop bs3@bucket
becomes bs3@bucket inactive
[ "$(property Result bs3@bucket)" = success ] || fail "stopped while it opened: $(property Result bs3@bucket)"
echo "a store that is away: $(journalctl -u bs3@bucket --output=cat | grep -c 'does not answer') lines in the log"

# --- a second volume beside, by the kernel's NBD client; both collect garbage
cat > /etc/bs3/second.toml <<'C'
store = "dir"
size = 1
transport = "nbd"
[dir]
path = "/var/lib/bs3/second"
[nbd]
device = "/dev/nbd0"
[write]
memory = 32
[log]
pretty = false
C
systemctl start bs3@second
status bs3@second '^serving /dev/nbd0, 1 GB, durable$'
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
cp -r /usr/sbin /mnt/
sums /mnt > /tmp/sums2
systemctl kill -s KILL bs3@second
dd if=/dev/urandom of=/mnt/late bs=64k count=4 conv=fsync status=none || fail "a write while nobody served"
becomes bs3@second active
rm /mnt/late
systemctl start bs3-gc.service
said bs3@second '"message":"garbage collection"'
journalctl -u bs3-gc --output=cat | grep -q 'asked bs3.service' || fail "bs3-gc.service has not asked bs3.service"
umount /mnt
systemctl restart bs3@second
mount /dev/nbd0 /mnt
sums /mnt | cmp - /tmp/sums2 || fail "the second volume: files are lost"
umount /mnt
healthy

# --- a store that is full: writers wait, the watchdog does nothing, and a stop waits
# beyond its time-out; a second signal leaves the rest for the next start
mkdir -p /var/lib/bs3/small
mount -t tmpfs -o size=128m tmpfs /var/lib/bs3/small
sed 's,/second,/small/store,; s,nbd0,nbd1,' /etc/bs3/second.toml > /etc/bs3/small.toml
dropin bs3@small WatchdogSec=3s TimeoutStopSec=5s
systemctl start bs3@small
dd if=/dev/urandom of=/tmp/blocks bs=1M count=64 status=none
dd if=/tmp/blocks of=/dev/nbd1 bs=1M count=8 oflag=direct status=none
dd if=/dev/zero of=/var/lib/bs3/small/full bs=1M status=none 2>/dev/null || true
dd if=/tmp/blocks of=/dev/nbd1 bs=1M count=16 skip=8 seek=8 oflag=direct status=none
dd if=/tmp/blocks of=/dev/nbd1 bs=1M skip=24 seek=24 oflag=direct status=none 2>/dev/null &
writer=$!
status bs3@small '^serving /dev/nbd1, 1 GB, durable; [0-9]* objects are not in the store yet; the store does not answer'
sleep 10
kill -0 $writer || fail "the daemon took more than chunk memory holds"
[ "$(property NRestarts bs3@small)" = 0 ] || fail "the watchdog kills while the store is full"
systemctl stop --no-block bs3@small
status bs3@small '^stopping; '
sleep 12
is bs3@small deactivating
systemctl kill bs3@small
becomes bs3@small failed
[ "$(property ExecMainStatus bs3@small)" = 1 ] || fail "exit $(property ExecMainStatus bs3@small), not 1"
rm /var/lib/bs3/small/full
systemctl start bs3@small
! wait $writer || fail "a write that nobody took did not fail with its device"
dd if=/dev/nbd1 bs=1M count=24 iflag=direct status=none | cmp -n $((24 << 20)) - /tmp/blocks || fail "blocks are lost"
echo "a full store: $(journalctl -u bs3@small --output=cat | grep -o '"writes":[0-9]*.*replayed chunk memory' | head -1)"
said bs3@small '"message":"replayed chunk memory"'
systemctl stop bs3@small
[ "$(property Result bs3@small)" = success ] || fail "the stop: $(property Result bs3@small)"
dmesg -C # users of the removed device got errors, as they must
! journalctl --boot -u bs3 -u bs3@second --output=cat | grep '"level":"warn"' || fail "warnings"

# --- fenced: the newer daemon keeps the volume
BS3_STATE_PATH=/run/elsewhere BS3_NBD_DEVICE= bs3 run -c /etc/bs3/second.toml --takeover 2>/tmp/other.log &
other=$!
took_over() {
  grep -q '"serving"' /tmp/other.log && return
  kill -0 $other 2>/dev/null || { cat /tmp/other.log; fail "no takeover"; }
  return 1
}
await "the takeover" took_over
! dd if=/dev/zero of=/dev/nbd0 bs=64k count=1 oflag=direct,sync status=none 2>/dev/null || fail "a fenced daemon acknowledged a write"
becomes bs3@second failed
[ "$(property ExecMainStatus bs3@second)" = 76 ] || fail "exit $(property ExecMainStatus bs3@second), not 76"
sleep 3
is bs3@second failed
kill $other
wait $other || fail "the newer daemon ended with $?"
status bs3@second '^failed: .*fenced'
echo "fenced: $(property StatusText bs3@second)"

# --- reboot
cp -r /etc /data/
sums /data > /root/sums # and not synced
touch /run/vm-reboot
