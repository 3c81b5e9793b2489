#!/bin/sh
# Boot the machine in QEMU, which emulates SVM and AVX2: boot_qemu.sh FOLDER SERIAL PARAMETERS.
set -eu
folder=$1
host=$folder/qemu
export LD_LIBRARY_PATH="$host/usr/lib/x86_64-linux-gnu:$host/lib/x86_64-linux-gnu"
exec "$host/usr/bin/qemu-system-x86_64" -L "$host/usr/share/qemu" -L "$host/usr/share/seabios" -accel tcg -cpu max -m 512 \
    -nodefaults -no-user-config -display none -no-reboot -serial "file:$2" -kernel "$folder/vmlinuz" -initrd "$folder/initrd" \
    -append "$3"
