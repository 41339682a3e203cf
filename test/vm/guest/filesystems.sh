# vm: -m 3072 -t 1800
# with: ublk nbd
# File systems are made, filled and trimmed, and are whole after a clean restart on
# nothing but the store. Before that, what the kernel says of the device.
. ./lib.sh
use "$1"
mkdir -p /tmp/tree && cp -r /usr/bin /tmp/tree/
sums /tmp/tree > /tmp/sums
[ "$(wc -l < /tmp/sums)" -gt 30 ] || fail "the tree is too small for a test"
stored() { du -sb /tmp/store | cut -f1; }

for type in ext4 xfs btrfs; do
  start
  sys=/sys/block/$(basename "$dev")
  same "$sys/size" $(((1 << 30) / 512))
  same "$sys/ro" 0
  same "$sys/queue/logical_block_size" 4096
  same "$sys/queue/physical_block_size" 4096
  same "$sys/queue/write_cache" "write back"
  same "$sys/queue/fua" 1
  same "$sys/queue/rotational" 0
  same "$sys/queue/discard_granularity" 4096
  grep -q '\[none\]' "$sys/queue/scheduler" || fail "scheduler $(cat "$sys/queue/scheduler")"
  [ "$(cat "$sys/queue/discard_max_bytes")" -ge $((1 << 20)) ] || fail "no discards"

  case $type in
  ext4) mkfs.ext4 -qF "$dev" ;;
  *) mkfs.$type -qf "$dev" ;;
  esac
  mount -t $type "$dev" /mnt
  cp -r /tmp/tree /mnt/
  cp -r /tmp/tree /mnt/more
  sync -f /mnt
  rm -r /mnt/more
  sync -f /mnt
  fstrim /mnt
  umount /mnt
  stop
  fsck

  rm -rf /run/bs3
  start
  case $type in
  ext4) e2fsck -fn "$dev" ;;
  xfs) xfs_repair -n "$dev" ;;
  btrfs) btrfs check --readonly "$dev" ;;
  esac > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail "$type is damaged"; }
  mount -t $type "$dev" /mnt
  sums /mnt/tree | cmp - /tmp/sums || fail "$type: other files than were written"
  umount /mnt
  # Discarded blocks read as zeros.
  blkdiscard -f "$dev"
  cmp -n $((64 << 20)) "$dev" /dev/zero || fail "discarded blocks hold data"
  stop
  echo "$type: $(wc -l < /tmp/sums) files are the same, $(stored) bytes in the store"
done
no_errors
