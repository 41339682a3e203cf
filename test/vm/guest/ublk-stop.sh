# vm: -m 2048 -t 400
# A clean stop with a mounted file system and data that nobody has synced: it is
# written back first, and nothing of it is lost.
. ./lib.sh
modprobe ublk_drv
engine=(-volume engine -size $((512 << 20)) -dir /tmp/store)
for type in ext4 xfs; do
  start_ublk "${engine[@]}"
  mkfs.$type -q "$dev" 2>/dev/null || mkfs.$type -qf "$dev"
  mount -t $type "$dev" /mnt
  cp -r /usr/bin /mnt/
  sums /mnt > /tmp/sums
  cp lib.sh /mnt/last
  stop_daemon
  umount /mnt
  until_ 10 test ! -e "/sys/block/$(basename "$dev")" || fail "$dev is still in sysfs"
  rm -rf /run/bs3
  start_ublk "${engine[@]}"
  mount -t $type "$dev" /mnt
  cmp lib.sh /mnt/last || fail "$type: the last file is lost"
  rm /mnt/last
  sums /mnt | cmp - /tmp/sums || fail "$type: files are lost"
  umount /mnt
  stop_daemon
  echo "$type: $(wc -l < /tmp/sums) unsynced files survived the stop"
done
ls /dev/ublkc* 2>/dev/null && fail "devices stay"
true
