# vm: -m 2048 -t 600
# A device that a killed daemon left is removed when the volume is served in another
# way: the caches of its users do not have what is written meanwhile. So no later
# daemon, which finds the volume whole, takes it over.
. ./lib.sh
modprobe ext4
serve_and_kill() {
  use "$1"
  start
  mount -t ext4 "$dev" /mnt
  kill_daemon
}
use ublk
start
mkfs.ext4 -qF "$dev"
stop
for pair in "ublk nbd" "nbd ublk"; do
  set -- $pair
  serve_and_kill "$1"
  old=$dev
  use nbd
  unset BS3_NBD_DEVICE # a socket only, no block device
  start
  kill -TERM "$daemon"
  wait "$daemon" || fail "the daemon ended with $?"
  ! dd if="$old" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null || fail "$old still reads"
  # Also while it is mounted.
  use "$2"
  start
  stop
  umount /mnt
  use "$1"
  start
  [ "$(grep -c 'taking the block device over' $log)" = 0 ] || fail "the device was taken over"
  e2fsck -fy "$dev" > /tmp/fsck 2>&1 || [ $? = 1 ] || { cat /tmp/fsck; fail "ext4 is damaged"; }
  stop
  echo "$1, then others: $old is gone"
  dmesg -c > /dev/null
done
