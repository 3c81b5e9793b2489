#!/bin/sh
# Run a part of the tests in an emulated machine: run.sh PART EMULATOR PYTHON [FOLDER].
# PART is kvm, keys or engine, the script inside_PART.py that the machine runs; EMULATOR is qemu or bochs.
# Exit codes: 0 all passed, 1 something failed, 3 not possible on this machine.
set -eu
part=$1
emulator=$2
python=$3
here=$(cd "$(dirname "$0")" && pwd)
folder=${4:-$here/../../build/emulated}
limit=${FPSTATE_EMULATED_SECONDS:-1200}

mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9 # one run at a time: each puts its own package and tests in
timeout -k 10 "$limit" "$here/prepare.sh" "$python" "$emulator" "$folder" "$part"
folder=$(cd "$folder" && pwd)
serial=$folder/serial-$emulator
: >"$serial"

parameters="console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off random.trust_cpu=on FPSTATE_PART=$part"
# QEMU 7.2 spoils RFLAGS in CMPXCHG16B, which the later kernel uses much: a double fault within a minute. And its far
# return reads the stack of a user as a supervisor, which SMAP forbids.
[ "$part $emulator" != "keys qemu" ] || parameters="$parameters clearcpuid=cx16,smap"
# Bochs takes ten times as long as QEMU: fewer of the random states.
[ "$part $emulator" != "kvm bochs" ] || export FPSTATE_SHARE="${FPSTATE_SHARE:-50}"
for choice in FPSTATE_TESTS FPSTATE_SHARE; do
    value=$(printenv "$choice" || true)
    [ -z "$value" ] || parameters="$parameters $choice=$value"
done

timeout -k 10 "$limit" "$here/boot_$emulator.sh" "$folder" "$serial" "$parameters" </dev/null &
machine=$!
trap 'kill "$machine" 2>/dev/null || true' EXIT INT TERM
tail -n +1 -f --pid="$machine" "$serial" &
wait "$machine" || true # an emulator may call every end of its machine a failure
wait || true
trap - EXIT INT TERM
grep -q '^inside ended: 0' "$serial" || exit 1
