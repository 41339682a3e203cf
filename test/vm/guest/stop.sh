# vm: -m 2048 -t 400
# with: ublk nbd
# A clean stop with a mounted file system and data that nobody has synced: it is
# written back first, and nothing of it is lost. Also not if the daemon is killed
# while it does that.
. ./lib.sh
use "$1"
for type in ext4 xfs; do
  start
  mkfs.$type -q "$dev" 2>/dev/null || mkfs.$type -qf "$dev"
  mount -t $type "$dev" /mnt
  cp -r /usr/bin /mnt/
  sums /mnt > /tmp/sums
  cp lib.sh /mnt/last
  kill -TERM "$daemon"
  wait "$daemon" || fail "the daemon ended with $?"
  umount /mnt
  until_ 10 gone || fail "$dev is still there"
  rm -rf /run/bs3
  start
  mount -t $type "$dev" /mnt
  cmp lib.sh /mnt/last || fail "$type: the last file is lost"
  rm /mnt/last
  sums /mnt | cmp - /tmp/sums || fail "$type: files are lost"
  umount /mnt
  stop
  fsck
  echo "$type: $(wc -l < /tmp/sums) unsynced files survived the stop"
done

# The store is full, so what is written back waits. The daemon dies nevertheless,
# and the next one has the device and its state.
alone() { [ "$(ls /proc/"$daemon"/task 2>/dev/null | wc -l)" -le 1 ]; } # the last thread is a zombie until it is waited for
writing_back() { tail -n "+$from" $log | grep -q 'writing back'; }
dmesg -c > /dev/null # who used a device that was stopped got errors, as he must
mkdir /tmp/small
mount -t tmpfs -o size=300m tmpfs /tmp/small
export BS3_DIR_PATH=/tmp/small/store
rm -rf /run/bs3
start
mkfs.ext4 -qF "$dev"
mount -t ext4 -o noatime "$dev" /mnt
sync -f /mnt
dd if=/dev/zero of=/tmp/small/full bs=1M status=none 2>/dev/null || true
dd if=/dev/urandom of=/mnt/big bs=1M count=100 status=none # more than chunk memory
sums /mnt > /tmp/sums
from=$(($(wc -l < $log) + 1))
kill -TERM "$daemon"
until_ 20 writing_back || fail "it does not stop"
sleep 5
kill -KILL "$daemon"
until_ 20 alone || fail "the killed daemon stays: $(grep -h State /proc/"$daemon"/task/*/status)"
wait "$daemon" 2>/dev/null || true
rm /tmp/small/full
start
grep -q 'taking the block device over' $log || fail "it was not taken over"
sync -f /mnt
echo 3 > /proc/sys/vm/drop_caches
sums /mnt | cmp - /tmp/sums || fail "files are lost"
no_errors
umount /mnt
stop
fsck
echo "killed while it wrote back: nothing is lost"
