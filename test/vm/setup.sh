#!/bin/bash
# Makes, once, what run.sh boots: a Debian kernel that has the drivers, and an archive
# with tools and modules as the root of the guest, all in $VMDIR, by default
# .tools/vm of the checkout. As root it installs missing Debian packages; it does not
# change the machine's apt sources.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
VMDIR=${VMDIR:-$here/../../.tools/vm}
mkdir -p "$VMDIR"
VMDIR=$(cd "$VMDIR" && pwd)
stamp=$(cat "$here/setup.sh" "$here/init" | sha256sum)
[ "$(cat "$VMDIR/ready" 2>/dev/null)" = "$stamp" ] && exit 0
rm -f "$VMDIR/ready"

# Programs of the guest, and the packages they come from.
tools='bash dd sha256sum cmp sync timeout stat truncate ls cp rm date sort head tail seq fio mke2fs mkfs.ext4 e2fsck
  tune2fs mkfs.xfs xfs_repair xfs_io mkfs.btrfs btrfs nbd-client nbdkit qemu-img strace kmod lsblk blkid mount umount
  blkdiscard fallocate findmnt losetup dmsetup nbdinfo nbdcopy flock fstrim blockdev taskset prlimit'
packages='qemu-system-x86 busybox-static cpio kmod xz-utils fio e2fsprogs xfsprogs btrfs-progs nbd-client nbdkit
  qemu-utils libnbd-bin strace dmsetup'
for t in $tools qemu-system-x86_64 busybox cpio depmod xz; do
  command -v $t >/dev/null && continue
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "the virtual machine needs $t; install these Debian packages, or run this as root:" $packages >&2
    exit 1
  fi
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $packages >/dev/null
  break
done
cd "$VMDIR"

# The kernel. That of Debian 12 has no ublk, the one in its backports has. It comes
# from where this machine gets its packages.
if [ ! -e kernel/done ]; then
  rm -rf apt kernel
  mkdir -p apt/lists/partial apt/cache/archives/partial apt/src kernel
  opt=(-o Dir::State::lists="$PWD/apt/lists" -o Dir::Cache="$PWD/apt/cache" -o APT::Sandbox::User=root)
  if [ "$(. /etc/os-release && echo "$VERSION_CODENAME")" = bookworm ]; then
    { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
      awk 'BEGIN { RS = ""; ORS = "\n\n" } /(^|\n)Suites:([^\n]* )?bookworm( |\n|-updates)/ { print; exit }' |
      sed 's/^Suites:.*/Suites: bookworm-backports/' > apt/src/kernel.sources
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
      sed -nE 's/^(deb( \[[^]]*\])? [^ ]+) bookworm .*/\1 bookworm-backports main/p' | head -1 > apt/src/kernel.list
    opt+=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$PWD/apt/src")
  fi
  apt-get "${opt[@]}" -q update >/dev/null
  package=$(apt-cache "${opt[@]}" depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  (cd apt && apt-get "${opt[@]}" -q download "$package" >/dev/null && dpkg -x "$package"_*.deb ../kernel)
  rm -rf apt
  [ -d kernel/lib/modules ] || { mkdir -p kernel/lib && ln -s ../usr/lib/modules kernel/lib/modules; }
  depmod -b "$PWD/kernel" "$(ls kernel/lib/modules)"
  touch kernel/done
fi
version=$(ls kernel/lib/modules)

# The root of the guest.
root=$VMDIR/root
rm -rf "$root"
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib,lib64,etc,proc,sys,dev,tmp,run,mnt,x,host,root,var/tmp}
box=$(command -v busybox)
cp "$box" "$root/bin/busybox"
for name in $("$box" --list | grep -vx busybox); do ln -sf busybox "$root/bin/$name"; done
libraries() {
  { ldd "$1" 2>/dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r l; do
    mkdir -p "$root$(dirname "$l")"
    [ -e "$root$l" ] || cp -L "$l" "$root$l"
  done
}
for t in $tools; do
  path=$(command -v "$t")
  rm -f "$root/bin/$t"
  cp -L "$(readlink -f "$path")" "$root/usr/bin/$t"
  libraries "$path"
done
for t in modprobe insmod rmmod lsmod; do
  rm -f "$root/bin/$t"
  ln -sf kmod "$root/usr/bin/$t"
done
ln -sf ../usr/bin/kmod "$root/sbin/modprobe" # where the kernel looks
kit=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
filters=$(nbdkit --dump-config | sed -n 's/^filterdir=//p')
for so in "$kit"/nbdkit-{memory,null,file}-plugin.so "$filters"/nbdkit-{delay,error,log}-filter.so; do
  mkdir -p "$root$(dirname "$so")"
  cp "$so" "$root$so"
  libraries "$so"
done
echo 'root:x:0:0:root:/root:/bin/bash' > "$root/etc/passwd"
echo 'root:x:0:' > "$root/etc/group"
echo '127.0.0.1 localhost' > "$root/etc/hosts"
echo 'hosts: files' > "$root/etc/nsswitch.conf"
cp /etc/mke2fs.conf "$root/etc/"
install -m 755 "$here/init" "$root/init"

# Its modules, with what they need.
mods=$VMDIR/mods
rm -rf "$mods"
mkdir -p "$mods/lib/modules/$version"
for m in configfs nbd ublk_drv ext4 xfs btrfs virtio_pci virtio_blk virtio_net virtio_rng 9p 9pnet_virtio loop \
  dm_mod dm_flakey dm_log_writes brd overlay crc32c_generic crc32c_intel af_packet mq_deadline fuse raid0 raid1; do
  { modprobe -S "$version" -d "$VMDIR/kernel" --show-depends $m 2>/dev/null || true; } | awk '$1 == "insmod" { print $2 }'
done | sed 's#//*#/#g' | sort -u | while read -r f; do
  to=$mods/lib/modules/$version/${f##*/lib/modules/"$version"/}
  mkdir -p "$(dirname "$to")"
  case $f in *.xz) xz -dc "$f" > "${to%.xz}" ;; *) cp "$f" "$to" ;; esac
done
cp kernel/lib/modules/"$version"/modules.{order,builtin,builtin.modinfo} "$mods/lib/modules/$version/"
depmod -b "$mods" "$version"

# Archives one after the other are one archive.
(cd "$root" && find . | cpio -o -H newc --quiet) > root.cpio
(cd "$mods" && find . | cpio -o -H newc --quiet) >> root.cpio
cp kernel/boot/vmlinuz-"$version" vmlinuz
echo "$stamp" > ready
echo "$VMDIR is ready, with Linux $version"
