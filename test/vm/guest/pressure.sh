# vm: -m 640 -t 2700 -d store:3G -d swap:512M
# with: ublk nbd
# Little memory, and a file system on the device that is written faster than it can
# be stored, while another process wants all memory: nothing must come to a halt.
# Then a daemon whose own files were moved onto its device is refused.
. ./lib.sh
use "$1"
modprobe -a virtio_blk ext4
mkfs.ext4 -qF /dev/vda
mkdir /store
mount /dev/vda /store
mkswap /dev/vdb > /dev/null
swapon /dev/vdb
export BS3_DIR_PATH=/store/objects BS3_WRITE_MEMORY=16 BS3_WRITE_CHUNKSIZE=2 BS3_READ_CACHESIZE=8 BS3_DIR_UPLOADERS=4
memory() { sed -n "s/^$1: *//p" /proc/meminfo; }
swapped() { awk '$1 == "pswpout" { print $2 }' /proc/vmstat; }
start
for t in /proc/$daemon/task/*; do # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of linux/sched.h
  [ $(($(cut -d' ' -f9 $t/stat) & 0x180000)) = $((0x180000)) ] || fail "thread $t is no I/O flusher"
done
mkfs.ext4 -qF "$dev"
mount "$dev" /mnt
echo "memory $(memory MemTotal), available $(memory MemAvailable)"

# A process that wants all memory and more: it writes all over it, again and again.
mount -o remount,size=2g /dev/shm
want=$(($(memory MemAvailable | cut -d' ' -f1) / 1024 + 150))
fio --name=hog --ioengine=mmap --filename=/dev/shm/hog --size=${want}m --rw=randwrite --bs=4k --time_based --runtime=500 > /tmp/hog 2>&1 &
hog=$!
# More than that process leaves, and not synced: lack of memory writes it back.
written=0
for i in 1 2 3 4 5; do
  dd if=/dev/urandom bs=1M count=64 status=none | tee /mnt/f$i | sha256sum | sed "s/-/f$i/" >> /tmp/sums
  written=$((written + 64))
  echo "written $written MB, dirty $(memory Dirty), available $(memory MemAvailable), $(swapped) pages swapped out"
done
kill -0 $hog || { cat /tmp/hog; fail "the process that wants all memory has ended"; }
[ "$(swapped)" -gt 10000 ] || fail "memory was not short"
kill -TERM $hog
wait $hog || true
sync -f /mnt
echo 3 > /proc/sys/vm/drop_caches
(cd /mnt && sha256sum --quiet -c /tmp/sums) || fail "files have changed"
no_errors
! dmesg | grep -E 'blocked for more|out of memory|Out of memory' || fail "the kernel complains"

# Its own files on its own device: refused before it looks at them, which would
# never end with a device that waits for it. The time-out is for that hang.
mkdir -p /mnt/state
kill_daemon
BS3_STATE_PATH=/mnt/state timeout 600 ./bs3 > /tmp/own 2>&1 && fail "bs3 runs with its state on its own device" || rc=$?
[ $rc = 78 ] && grep -q 'state.path.*must not lie on' /tmp/own || { cat /tmp/own; fail "exit $rc"; }
start
(cd /mnt && sha256sum --quiet -c /tmp/sums) || fail "files have changed"
umount /mnt
stop
