# vm: -m 2048 -t 300 -d store:2G -d notes:1M -d cache:2G
# with: ublk nbd
# boots: 2
# A power cut of the machine in the mode of the local log, which is on a disk:
# after it the volume is a prefix of what was written, with all that was flushed,
# part of it from the log. The chunk memory is gone.
. ./lib.sh
use "$1"
modprobe -a virtio_blk ext4
mkdir -p /store /cache
if [ "$2" = 1 ]; then
  mkfs.ext4 -qF /dev/vda
  mkfs.ext4 -qF /dev/vdc
fi
for disk in "vda /store" "vdc /cache"; do
  set -- "$1" "$2" $disk
  e2fsck -fy "/dev/$3" > /tmp/e2fsck 2>&1 || [ $? = 1 ] || { cat /tmp/e2fsck; fail "the disk of $4"; }
  mount -o ro "/dev/$3" "$4" && umount "$4"
  mount "/dev/$3" "$4"
done
# Objects go to the store when they are full, and not before.
export BS3_DIR_PATH=/store/objects BS3_WRITE_CHUNKSIZE=4 BS3_WRITE_MEMORY=16 BS3_WRITE_LINGER=600000
export BS3_WRITE_DURABLE=false BS3_CACHE_PATH=/cache/bs3 BS3_CACHE_SIZE=1
start
if [ "$2" = 1 ]; then
  ./stamp write "$dev" /dev/vdb 11 > /tmp/stamp 2>&1 &
  stamp=$!
  sleep 20
  kill -0 $stamp || { cat /tmp/stamp; fail "stamp has ended"; }
  no_errors
  echo "the power is cut"
  echo RC=0 > /dev/ttyS1
  echo b > /proc/sysrq-trigger
  sleep 60
fi
./stamp check "$dev" /dev/vdb 11 || fail "no prefix"
grep '"replayed chunk memory"' $log || fail "nothing was replayed"
grep '"from_log":[1-9]' $log || fail "nothing was replayed from the local log"
stop
fsck
