#!/bin/bash
# run.sh [-m MB] [-t SECONDS] [-x DIR]... [-d IMAGE[:SIZE]]... [-s DIR] [-a A,B] SCRIPT
# runs SCRIPT in a fresh virtual machine, see README.md. setup.sh comes first.
VMDIR=${VMDIR:-$(cd "$(dirname "$0")" && pwd)/../../.tools/vm}
memory=2048 limit=120 copies=() disks=() share='' args=''
while getopts m:t:x:d:s:a: o; do
  case $o in
  m) memory=$OPTARG ;;
  t) limit=$OPTARG ;;
  x) copies+=("$OPTARG") ;;
  d) disks+=("$OPTARG") ;;
  s) share=$OPTARG ;;
  a) args=$OPTARG ;;
  *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/more/x" "$work/more/etc"
# Of a host without one, an open after a crash cannot tell that it is the same.
echo 6273332d74657374732d766d2d686f73 > "$work/more/etc/machine-id"
for d in "${copies[@]}"; do cp -rL "$d"/. "$work/more/x/"; done
cp "$1" "$work/more/x/.script"
cp "$VMDIR/root.cpio" "$work/initrd"
(cd "$work/more" && find . | cpio -o -H newc --quiet) >> "$work/initrd"
rm -rf "$work/more"
more=()
for d in "${disks[@]}"; do
  image=${d%%:*}
  [ -e "$image" ] || truncate -s "${d#*:}" "$image"
  more+=(-drive "file=$image,format=raw,if=virtio,cache=writeback,discard=unmap")
done
shared=
if [ -n "$share" ]; then
  more+=(-virtfs "local,path=$share,mount_tag=host,security_model=none,multidevs=remap")
  shared=vm.share=1
fi
# Emulation now and then lets a kernel crash while it boots; a script that has
# begun is not tried again.
for try in 1 2 3; do
  qemu=0
  timeout -k 5 "$limit" qemu-system-x86_64 -accel "${VMACCEL:-tcg,thread=multi,tb-size=512}" -smp 2 -cpu max -m "$memory" \
    -no-reboot -display none -monitor none -nodefaults -serial stdio -serial "file:$work/rc" \
    -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci \
    -kernel "$VMDIR/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off $shared vm.args=$args" "${more[@]}" </dev/null || qemu=$?
  [ $qemu = 0 ] && ! grep -q '^UP' "$work/rc" 2>/dev/null || break
  echo "run.sh: the guest crashed before it was up (try $try)"
done
[ $qemu = 124 ] || [ $qemu = 137 ] && { echo "run.sh: not done after $limit s"; exit 124; }
rc=$(sed -n 's/^RC=\([0-9]*\).*/\1/p' "$work/rc" 2>/dev/null)
[ -n "$rc" ] || { echo "run.sh: the guest died (qemu $qemu)"; exit 125; }
exit "$rc"
