# vm: -m 2048 -t 1200
# with: ublk nbd
# A clean stop with a mounted file system and data that nobody has synced: it is
# written back first, and nothing is lost, even if the daemon is killed meanwhile.
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
  await "$dev to go" gone
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

# The store is full, so the write-back waits. The daemon dies nevertheless, and the
# next one gets the device and the state.
alone() { [ "$(ls /proc/"$daemon"/task 2>/dev/null | wc -l)" -le 1 ]; } # the last thread is a zombie until it is waited for
writing_back() { tail -n "+$from" $log | grep -q 'writing back'; }
dmesg -c > /dev/null # users of the stopped device got errors, as they must
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
await "the daemon to write back" writing_back
sleep 5
kill -KILL "$daemon"
await "the killed daemon to die" alone
wait "$daemon" 2>/dev/null || true
rm /tmp/small/full
start
grep -q 'taking the block device over' $log || fail "the device was not taken over"
sync -f /mnt
echo 3 > /proc/sys/vm/drop_caches
sums /mnt | cmp - /tmp/sums || fail "files are lost"
no_errors
umount /mnt
stop
fsck
echo "killed during the write-back: nothing is lost"
