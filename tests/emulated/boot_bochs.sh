#!/bin/sh
# Boot the machine in Bochs, which emulates VMX and AVX-512 in Intel's layout: boot_bochs.sh FOLDER SERIAL PARAMETERS.
set -eu
folder=$1
host=$folder/bochs
here=$(cd "$(dirname "$0")" && pwd)
libraries=$host/usr/lib/x86_64-linux-gnu

# The machine's time is its instructions; its XSAVEC is wrong and hidden: see README.md.
parameters="$3 FPSTATE_DRAIN=5 FPSTATE_HIDE_XSAVEC=1 noxsaves clearcpuid=xsavec,xsaves tsc=reliable tsc_early_khz=500000"
disc=$folder/disc
rm -rf "$disc"
mkdir -p "$disc/isolinux"
gzip -1 <"$folder/initrd" >"$disc/initrd"
cp "$folder/vmlinuz" "$disc/"
sed "s|@PARAMETERS@|$parameters|" "$here/isolinux.cfg" >"$disc/isolinux/isolinux.cfg"
cp "$host/usr/lib/ISOLINUX/isolinux.bin" "$host/usr/lib/syslinux/modules/bios/ldlinux.c32" "$disc/isolinux/"
LD_LIBRARY_PATH=$libraries "$host/usr/bin/xorriso" -as mkisofs -quiet -o "$folder/boot.iso" -b isolinux/isolinux.bin \
    -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$disc" >"$folder/xorriso.log" 2>&1

cat >"$folder/bochsrc" <<END
cpu: model=corei7_skylake_x, count=1, ips=500000000, reset_on_triple_fault=0
clock: sync=none
memory: guest=512, host=512
romimage: file=$host/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=$host/usr/share/vgabios/vgabios.bin
config_interface: textconfig
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path=$folder/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$2
log: $folder/log
panic: action=fatal
END
echo c >"$folder/commands"
rm -f "$folder/log"

# Bochs wants a display: a VNC server that nobody can reach, as it gets a network of its own. (Its terminal display
# blocks in the end, as nobody reads the terminal.)
alone="unshare --net"
$alone true 2>/dev/null || alone="unshare --map-root-user --net"
$alone true 2>/dev/null || alone=
export LD_LIBRARY_PATH="$libraries" LTDL_LIBRARY_PATH="$libraries/bochs/plugins" BXSHARE="$host/usr/share/bochs"
# shellcheck disable=SC2086
exec $alone "$host/usr/bin/bochs-bin" -q -f "$folder/bochsrc" -rc "$folder/commands" >"$folder/screen" 2>&1
