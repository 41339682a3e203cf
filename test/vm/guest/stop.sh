# vm: -m 2048 -t 300
# with: ublk nbd
# A clean stop with a mounted file system and data that nobody has synced: it is
# written back first, and nothing of it is lost.
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
