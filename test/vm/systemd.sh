#!/bin/bash
# systemd.sh [-m MB] [-t SECONDS] [-x DIR]... SCRIPT
# is like run.sh, but the guest is a fresh Debian with systemd as its first process,
# and SCRIPT runs as a unit after multi-user.target. A script that leaves the file
# /run/vm-reboot runs again after a reboot.
set -euo pipefail
VMDIR=${VMDIR:-$(cd "$(dirname "$0")" && pwd)/../../.tools/vm}
memory=3072 limit=240 copies=()
while getopts m:t:x: o; do
  case $o in m) memory=$OPTARG ;; t) limit=$OPTARG ;; x) copies+=("$OPTARG") ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
version=$(ls "$VMDIR/kernel/lib/modules")
if [ ! -e "$VMDIR/debian/done-$version" ]; then # once
  command -v debootstrap >/dev/null || apt-get install -qy --no-install-recommends debootstrap >/dev/null
  mirror=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | head -1)
  rm -rf "$VMDIR/debian"
  debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,udev,dbus,kmod,e2fsprogs,xfsprogs,util-linux,fio,nbd-client,procps,make \
    bookworm "$VMDIR/debian" "$mirror" >/dev/null
  mkdir -p "$VMDIR/debian/lib/modules/$version"
  cp -a "$VMDIR/mods/lib/modules/$version/." "$VMDIR/debian/lib/modules/$version/"
  echo vm > "$VMDIR/debian/etc/hostname"
  touch "$VMDIR/debian/done-$version"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a "$VMDIR/debian" "$work/root"
mkdir -p "$work/root/x"
for d in "${copies[@]}"; do cp -rL "$d"/. "$work/root/x/"; done
cp "$1" "$work/root/root/script"
cat > "$work/root/root/run" <<'R'
# A machine that crashes boots again. That is right if emulation let it crash early,
# but not if the script has begun.
if [ -e /root/running ]; then
  echo "guest: crashed"
  systemctl poweroff -f
  exit
fi
touch /root/running
sync -f /root/running
bash /root/script
rc=$?
if [ $rc = 0 ] && [ -e /run/vm-reboot ]; then
  rm /root/running
  exec systemctl reboot
fi
echo "guest: exit $rc"
echo RC=$rc > /dev/ttyS1
systemctl poweroff -f
R
units=$work/root/etc/systemd/system
cat > "$units/vmtest.service" <<'U'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/x
ExecStart=/bin/bash /root/run
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
U
mkdir -p "$units/multi-user.target.wants"
ln -sf ../vmtest.service "$units/multi-user.target.wants/"
truncate -s 4G "$work/disk"
mkfs.ext4 -q -d "$work/root" "$work/disk"
rm -rf "$work/root"
mkdir "$work/more"
cat > "$work/more/init" <<'I'
#!/bin/busybox sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
modprobe -a virtio_pci virtio_blk virtio_net virtio_rng crc32c_generic crc32c_intel ext4
mkdir -p /n; mount -t ext4 /dev/vda /n
for m in dev proc sys; do mount --move /$m /n/$m; done
exec /bin/busybox switch_root /n /sbin/init
I
chmod 755 "$work/more/init"
cp "$VMDIR/root.cpio" "$work/initrd"
(cd "$work/more" && find . | cpio -o -H newc --quiet) >> "$work/initrd"
qemu=0
timeout -k 5 "$limit" qemu-system-x86_64 -accel "${VMACCEL:-tcg,thread=multi,tb-size=512}" -smp 2 -cpu max -m "$memory" \
  -display none -monitor none -nodefaults -serial stdio -serial "file:$work/rc" \
  -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci \
  -drive "file=$work/disk,format=raw,if=virtio" -kernel "$VMDIR/vmlinuz" -initrd "$work/initrd" \
  -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service" </dev/null || qemu=$?
[ $qemu = 124 ] || [ $qemu = 137 ] && { echo "systemd.sh: not done after $limit s"; exit 124; }
rc=$(sed -n 's/^RC=\([0-9]*\).*/\1/p' "$work/rc" 2>/dev/null)
[ -n "$rc" ] || { echo "systemd.sh: the guest died (qemu $qemu)"; exit 125; }
exit "$rc"
