#!/bin/sh
# Make a CD that boots Linux into the tests: prepare.sh PYTHON FOLDER. Everything goes below FOLDER.
# What comes from Debian is fetched once; the package and the tests are put on the CD anew each time.
set -eu
python=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)

HOST_PACKAGES="bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso cpio"
GUEST_PACKAGES="busybox-static python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libexpat1 zlib1g libffi8"
TEST_PACKAGES="pytest pytest-timeout"
# Parts of Python's library that nothing here imports, or that are large.
LEFT_OUT="asyncio concurrent curses dbm distutils ensurepip http idlelib lib2to3 multiprocessing
pydoc_data sitecustomize.py sqlite3 test tkinter turtledemo venv wsgiref xmlrpc"

cannot() {
    echo "fpstate: the emulated processor is not to be had here: $1" >&2
    exit 3
}

# Debian 12's kernel, Python and C library run in the machine, so what was built here must fit them.
grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || cannot "this is not Debian 12"
[ "$(dpkg --print-architecture)" = amd64 ] || cannot "this is not amd64"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || cannot "$python is not Python 3.11"

unpack() {
    mkdir -p "$2.new"
    for package in "$1"/*.deb; do
        dpkg -x "$package" "$2.new"
    done
    rm -rf "$2"
    mv "$2.new" "$2"
}

# The emulator and the tools, with what they need and this machine lacks: nothing is installed.
fetch_host() {
    rm -rf "$folder/host-debs" "$folder/host.new"
    mkdir -p "$folder/host-debs/partial"
    # shellcheck disable=SC2086
    apt-get install --yes -qq --download-only --reinstall --no-install-recommends -o "Dir::Cache::archives=$folder/host-debs" \
        -o Debug::NoLocking=1 $HOST_PACKAGES >"$folder/apt.log" 2>&1 || return 1
    unpack "$folder/host-debs" "$folder/host"
}

fetch_guest() {
    rm -rf "$folder/guest-debs" "$folder/guest.new"
    mkdir -p "$folder/guest-debs"
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [ -n "$kernel" ] || return 1
    # shellcheck disable=SC2086
    (cd "$folder/guest-debs" && apt-get download -qq "$kernel" $GUEST_PACKAGES) >"$folder/apt.log" 2>&1 || return 1
    unpack "$folder/guest-debs" "$folder/guest"
    rm -rf "$folder/guest/lib/modules"
}

if [ ! -d "$folder/host" ] || [ ! -d "$folder/guest" ]; then
    apt-get update -qq >/dev/null 2>&1 || true # as root; else the lists have to do as they are
    fetch_host || cannot "Bochs 2.7 and the tools that make a CD cannot be fetched ($(tail -n 1 "$folder/apt.log"))"
    fetch_guest || cannot "Debian's kernel and Python cannot be fetched ($(tail -n 1 "$folder/apt.log"))"
fi

guest_python() {
    "$folder/guest/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path \
        "$folder/guest/lib/x86_64-linux-gnu:$folder/guest/usr/lib/x86_64-linux-gnu" "$folder/guest/usr/bin/python3.11" "$@"
}

# The file system that the kernel gets into memory: a shell, Python's library as compiled code, the package, tests.
root=$folder/root
library=$root/usr/lib/python3.11
rm -rf "$root" "$folder/site"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/lib64" "$root/usr/bin" "$root/usr/lib" "$root/lib/x86_64-linux-gnu" \
    "$root/tests"

cp -R "$folder/guest/usr/lib/python3.11" "$library"
for part in $LEFT_OUT; do
    rm -rf "${library:?}/$part"
done
guest_python -m compileall -q -b --invalidation-mode unchecked-hash -s "$library" -p /usr/lib/python3.11 "$library"
find "$library" -name '*.py' -delete
cp "$folder/guest/bin/busybox" "$root/bin/"
cp "$folder/guest/usr/bin/python3.11" "$root/usr/bin/"
cp "$folder"/guest/lib64/ld-* "$root/lib64/" 2>/dev/null || cp "$folder/guest/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$root/lib64/"
for name in libc.so.6 libm.so.6 libz.so.1 libexpat.so.1 libffi.so.8 libgcc_s.so.1; do
    for place in "$folder/guest/lib/x86_64-linux-gnu/$name" "$folder/guest/usr/lib/x86_64-linux-gnu/$name"; do
        [ ! -e "$place" ] || cp -L "$place" "$root/lib/x86_64-linux-gnu/"
    done
done

rm -rf "$folder/wheel"
quietly() {
    "$python" -m pip --quiet --quiet --disable-pip-version-check "$@"
}
quietly wheel --no-deps --wheel-dir "$folder/wheel" --config-settings=build-dir="$folder/cmake" "$project"
quietly install --no-deps --no-compile --target "$folder/site" "$folder"/wheel/*.whl
rm -rf "$folder/site/bin"
# shellcheck disable=SC2086
quietly install --no-compile --target "$folder/site" $TEST_PACKAGES
rm -rf "$folder/site/bin"
guest_python -m compileall -q --invalidation-mode unchecked-hash -s "$folder/site" -p /site "$folder/site"
cp -R "$folder/site" "$root/site"
cp "$here/sitecustomize.py" "$root/site/"
cp -R "$project/tests/hardware" "$project/tests/integration" "$project/tests/conftest.py" "$root/tests/" # the driver chooses
cp "$here/driver.py" "$root/"
cp "$here/init" "$root/init"
chmod +x "$root/init"
find "$root/tests" -name __pycache__ -type d -prune -exec rm -rf {} +

tool() {
    if [ -x "$folder/host/usr/bin/$1" ]; then
        name=$1
        shift
        LD_LIBRARY_PATH="$folder/host/usr/lib/x86_64-linux-gnu" "$folder/host/usr/bin/$name" "$@"
    else
        "$@"
    fi
}

disc=$folder/disc
rm -rf "$disc"
mkdir -p "$disc/isolinux"
(cd "$root" && find . | LC_ALL=C sort | tool cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$disc/initrd"
cp "$folder"/guest/boot/vmlinuz-* "$disc/vmlinuz"
cp "$here/isolinux.cfg" "$disc/isolinux/"
cp "$folder/host/usr/lib/ISOLINUX/isolinux.bin" "$folder/host/usr/lib/syslinux/modules/bios/ldlinux.c32" "$disc/isolinux/"
tool xorriso -as mkisofs -quiet -o "$folder/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$disc" >"$folder/xorriso.log" 2>&1
