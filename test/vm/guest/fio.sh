# vm: -m 3072 -t 1200
# with: ublk nbd
# fio verifies what it wrote, with many requests at a time, and trims.
. ./lib.sh
use "$1"
BS3_THREADS=2 BS3_SCHEDULER=true start
if [ "$1" = ublk ]; then
  [ "$(ls "/sys/block/$(basename "$dev")/mq" | wc -l)" = 2 ] || fail "not two queues"
fi
grep -q '\[mq-deadline\]' "/sys/block/$(basename "$dev")/queue/scheduler" || fail "scheduler"
cmp -n $((16 << 20)) "$dev" /dev/zero || fail "blocks that were never written hold data"
# One trim at a time: otherwise fio sends the trim and the write of a block together.
fio --filename="$dev" --direct=1 --ioengine=libaio --randrepeat=0 --verify=crc32c --verify_fatal=1 --allow_file_create=0 \
  --name=one --offset=128m --size=48m --rw=randwrite --bsrange=4k-256k --iodepth=16 \
  --name=two --offset=256m --size=48m --rw=randrw --bsrange=4k-64k --iodepth=16 --cpus_allowed=1 \
  --name=trims --offset=0 --size=16m --rw=randtrimwrite --bs=16k --iodepth=1 \
  --name=synced --offset=384m --size=4m --rw=randwrite --bs=4k --iodepth=4 --fsync=8 > /tmp/fio 2>&1 ||
  { tail -50 /tmp/fio; fail "fio"; }
grep -E 'issued rwts' /tmp/fio
stop
fsck
no_errors
