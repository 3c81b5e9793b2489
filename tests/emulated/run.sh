#!/bin/sh
# Run the engine on an emulated AVX-512 processor: run.sh PYTHON [FOLDER]. Takes several minutes.
# Exit codes: 0 all right, 1 something failed, 3 not possible on this machine.
set -eu
python=${1:-python3}
here=$(cd "$(dirname "$0")" && pwd)
folder=${2:-$here/../../build/emulated}
limit=${FPSTATE_EMULATED_SECONDS:-1200}

timeout -k 10 "$limit" "$here/prepare.sh" "$python" "$folder"
folder=$(cd "$folder" && pwd)
host=$folder/host
serial=$folder/serial

cat >"$folder/bochsrc" <<EOF
cpu: model=corei7_skylake_x, count=1, ips=500000000, reset_on_triple_fault=0
clock: sync=none
memory: guest=512, host=512
romimage: file=$host/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=$host/usr/share/vgabios/vgabios.bin
config_interface: textconfig
display_library: rfb, options="timeout=0"
ata0-master: type=cdrom, path=$folder/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$serial
log: $folder/log
panic: action=fatal
EOF
echo c >"$folder/commands"
rm -f "$folder/log"
: >"$serial"

# Bochs wants a display: a VNC server that nobody can reach, as it gets a network of its own. (Its terminal display
# blocks in the end, as nobody reads the terminal.)
alone="unshare --net"
$alone true 2>/dev/null || alone="unshare --map-root-user --net"
$alone true 2>/dev/null || alone=

libraries=$host/usr/lib/x86_64-linux-gnu
# shellcheck disable=SC2086
LD_LIBRARY_PATH=$libraries LTDL_LIBRARY_PATH=$libraries/bochs/plugins BXSHARE=$host/usr/share/bochs \
    timeout -k 10 "$limit" $alone "$host/usr/bin/bochs-bin" -q -f "$folder/bochsrc" -rc "$folder/commands" \
    </dev/null >"$folder/screen" 2>&1 &
bochs=$!
trap 'kill "$bochs" 2>/dev/null || true' EXIT INT TERM
tail -n +1 -f --pid="$bochs" "$serial" &
wait "$bochs" || true # Bochs calls every end of its machine a failure
sleep 1
trap - EXIT INT TERM
grep -qx 'driver ended: 0' "$serial"
