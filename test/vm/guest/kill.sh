# vm: -m 3072 -t 1800
# with: ublk nbd
# kill -9 under load: the next daemon takes over the same device, and neither fio nor
# a mounted file system notices. Without the chunk memory the device is gone, or
# fails.
. ./lib.sh
use "$1"
modprobe ext4

start
first=$dev
# A file system on one half; fio on the other.
mkfs.ext4 -qF "$dev" 400M
mount -t ext4 "$dev" /mnt
fio --filename="$dev" --direct=1 --ioengine=libaio --randrepeat=0 --verify=crc32c --verify_fatal=1 --allow_file_create=0 \
  --name=raw --offset=512m --size=48m --rw=randwrite --bsrange=4k-64k --iodepth=16 --time_based --runtime=45 \
  --do_verify=1 > /tmp/fio 2>&1 &
fio=$!
( # files, each synced, with their checksums
  i=0
  while [ ! -e /tmp/enough ]; do
    i=$((i + 1))
    dd if=/dev/urandom of=/mnt/f$i bs=64k count=$((1 + i % 5)) conv=fsync status=none
    [ $((i % 100)) != 99 ] || rm /mnt/f$((i - 50))
  done
  echo $i > /tmp/files
) &
files=$!
rounds=3
for round in $(seq $rounds); do
  sleep $((4 + round % 3))
  kill -0 $fio 2>/dev/null || fail "fio has ended before round $round"
  # Not flushed when the daemon dies.
  dd if=/dev/urandom of=/tmp/unflushed bs=64k count=1 status=none
  dd if=/tmp/unflushed of="$dev" bs=64k seek=11200 oflag=direct conv=notrunc status=none
  begin=$SECONDS
  kill_daemon
  [ -e "$first" ] || fail "the device disappeared with its daemon"
  sleep $((round % 2))
  start
  [ "$dev" = "$first" ] || fail "the device is now $dev, not $first"
  dd if="$dev" bs=64k skip=11200 count=1 iflag=direct status=none | cmp - /tmp/unflushed || fail "an acknowledged write is lost"
  echo "round $round: back after $((SECONDS - begin)) s"
done
grep -c 'taking the block device over' $log | grep -qx $rounds || fail "the device was not taken over $rounds times"
# There are none if the others happened to flush before each death.
{ grep '"replayed chunk memory"' $log || true; } | sed -n 's/.*"writes":\([0-9]*\).*/replayed \1 writes/p'
touch /tmp/enough
wait $files || fail "a file could not be written"
rm /tmp/enough
wait $fio || { tail -50 /tmp/fio; fail "fio"; }
grep -E 'issued rwts' /tmp/fio
! grep -q 'issued rwts: total=0,' /tmp/fio || fail "fio verified nothing"
[ "$(cat /tmp/files)" -gt 10 ] || fail "only $(cat /tmp/files) files"
sums /mnt > /tmp/sums
umount /mnt
no_errors
stop
fsck
start
e2fsck -fn "$dev" > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail "ext4 is damaged"; }
mount -t ext4 "$dev" /mnt
sums /mnt | cmp - /tmp/sums || fail "files have changed"
echo "$(cat /tmp/files) files"

# A daemon that does not come back for a while: users of the device wait.
kill_daemon
dd if=/dev/urandom of=/mnt/late bs=64k count=8 conv=fsync status=none &
late=$!
sleep 3
kill -0 $late || fail "a write to a device without a daemon has ended"
start
wait $late || fail "the write that waited"

# Daemons that are killed while they open the volume or take the device over. A ublk
# device that has only some of its queues cannot be taken over (the ublk-kernel test
# covers that): no daemon is killed just then.
half() { [ -e "$BS3_STATE_PATH/ublk-takeover" ]; }
kill_opening() {
  kill -STOP "$daemon"
  sleep 0.1
  while half; do
    kill -CONT "$daemon"
    sleep 0.1
    kill -STOP "$daemon"
    sleep 0.1
  done
  kill_daemon
}
for delay in 0.2 0.4 0.6 0.7 0.8 0.9 1 1.5; do
  kill_opening
  dd if=/dev/urandom of=/mnt/again bs=64k count=8 conv=fsync status=none &
  again=$!
  ./bs3 >> $log 2>&1 &
  daemon=$!
  sleep $delay
done
kill_opening
start
[ "$dev" = "$first" ] || fail "the device is now $dev, not $first"
wait $again || fail "a write after daemons that were killed during takeovers"
no_errors

# What the daemon had acknowledged is lost: the device must not be taken over.
kill_daemon
rm -rf /run/bs3
dd if=/dev/zero of=/mnt/lost bs=64k count=8 conv=fsync status=none 2>/tmp/dd &
lost=$!
sleep 1
if [ "$1" = ublk ]; then
  # Nor after another daemon has opened the volume and failed.
  ! BS3_CONTROL_SOCKET=/proc/nowhere/s ./bs3 >> $log 2>&1 || fail "bs3 serves without its control socket"
  tail -1 $log | grep -q 'control socket' || fail "bs3 failed for another reason: $(tail -1 $log)"
  start
  grep -q 'removing the block device' $log || fail "the removal is not logged"
else
  # The device has one name, which Linux keeps in use as long as it is mounted.
  # No daemon takes it over, nor does one open the volume, whose epoch stays.
  epoch=$(./bs3 info --json | grep -o '"epoch": *[0-9]*')
  for _ in 1 2; do
    ! ./bs3 >> $log 2>&1 || fail "a daemon serves a device that is still mounted"
    tail -1 $log | grep -q 'unmount it' || fail "the mount is not logged: $(tail -1 $log)"
  done
  grep -q 'disconnecting a block device' $log || fail "the disconnection is not logged"
  [ "$(./bs3 info --json | grep -o '"epoch": *[0-9]*')" = "$epoch" ] || fail "a daemon that cannot serve has taken an epoch"
fi
! wait $lost || fail "a write to a device that has lost data succeeded"
echo "without chunk memory: $(cat /tmp/dd)"
umount /mnt
[ "$1" = ublk ] || start
dd if="$dev" of=/dev/null bs=1M count=64 status=none || fail "the new device"
stop
