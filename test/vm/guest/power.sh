# vm: -m 2048 -t 900 -d store:4G -d notes:1M
# with: ublk nbd log
# boots: 2
# A power cut of the machine, whose store is on a disk: afterwards the volume is a
# prefix of what was written, with all that was flushed. Before the cut the daemon
# is killed and comes back. With "log" flushes wait for a local log on that disk
# instead of the store.
. ./lib.sh
use "${1/log/ublk}"
modprobe -a virtio_blk ext4
mkdir -p /store
[ "$2" = 2 ] || mkfs.ext4 -qF /dev/vda
mount /dev/vda /store
if [ "$1" = log ]; then
  export BS3_WRITE_DURABLE=false BS3_CACHE_PATH=/store/log BS3_CACHE_SIZE=1
fi
export BS3_DIR_PATH=/store/objects BS3_CHECKPOINT_INTERVAL=5 BS3_GC_WAIT=3 BS3_WRITE_CHUNKSIZE=1 BS3_WRITE_MEMORY=16
start
if [ "$2" = 1 ]; then
  ./stamp write "$dev" /dev/vdb 11 > /tmp/stamp 2>&1 &
  stamp=$!
  sleep 8
  kill_daemon
  start
  sleep 12
  kill -0 $stamp || { cat /tmp/stamp; fail "stamp has ended"; }
  no_errors
  echo "cutting the power"
  echo RC=0 > /dev/ttyS1
  echo b > /proc/sysrq-trigger
  sleep 60
fi
[ "$1" != log ] || echo "replayed from the local log: $(sed -n 's/.*"from_log":\([0-9]*\).*/\1/p' $log) writes"
./stamp check "$dev" /dev/vdb 11 || fail "no prefix"
stop
fsck
