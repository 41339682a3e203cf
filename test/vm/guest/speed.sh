# vm: -m 3072 -t 1200
# Random 4 KiB writes and reads through ublk and through a kernel NBD device in the
# same machine: on a volume that does nothing, which shows the cost of the
# transport, and on one in a directory, whose reads the memory cache answers. It
# compares and asserts nothing.
. ./lib.sh
size=48m # less than the cache
# iops READ_OR_WRITE prints the rate.
iops() {
  fio --filename="$dev" --direct=1 --ioengine=libaio --name=x --rw=rand"$1" --bs=4k --iodepth=32 --numjobs=2 --group_reporting \
    --size=$size --time_based --ramp_time=1 --runtime=5 --allow_file_create=0 --minimal | cut -d';' -f"$([ "$1" = read ] && echo 8 || echo 49)"
}
for null in true false; do
  export BS3_NULL=$null BS3_WRITE_DURABLE=false
  for transport in nbd ublk; do
    use $transport
    export BS3_DIR_PATH=/tmp/store-$null-$transport # both begin with an empty store
    rm -rf /run/bs3
    start
    dd if=/dev/urandom of="$dev" bs=1M count=${size%m} oflag=direct status=none # no holes
    eval "${transport}_write=$(iops write)"
    # First what was written goes into the store, and all of it into the cache:
    # otherwise blocks would be fetched during the measurement.
    if [ $null = false ]; then
      ./bs3 checkpoint
      dd if="$dev" of=/dev/null bs=1M count=${size%m} iflag=direct status=none
    fi
    eval "${transport}_read=$(iops read)"
    stop
  done
  what=$([ $null = true ] && echo "null volume" || echo "volume in a directory")
  for way in write read; do
    u=ublk_$way n=nbd_$way
    echo "$what, random 4 KiB $way: ublk ${!u}/s, kernel NBD ${!n}/s, ratio $(awk "BEGIN { printf \"%.2f\", ${!u} / ${!n} }")"
  done
done
