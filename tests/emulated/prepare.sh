#!/bin/sh
# Make what an emulated machine boots: prepare.sh PYTHON EMULATOR FOLDER PART. Everything goes below FOLDER:
# vmlinuz, initrd (Python, the package, the tests) and the emulator, qemu or bochs, which is unpacked and not installed.
# What is not ours is fetched once; the package is built when it changed, the tests are put in anew each time.
set -eu
python=$1
emulator=$2
mkdir -p "$3"
folder=$(cd "$3" && pwd)
part=$4
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)

case $emulator in
    # QEMU's modules and option ROMs are named too: what is only needed by a package is left out where it is installed.
    qemu) HOST_PACKAGES="qemu-system-x86 qemu-system-common qemu-system-data seabios" ;;
    bochs) HOST_PACKAGES="bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso" ;;
    *) echo "fpstate: no emulator $emulator: qemu or bochs" >&2 && exit 2 ;;
esac
GUEST_PACKAGES="busybox-static python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libexpat1 zlib1g libffi8 liblzma5"
MODULES="irqbypass kvm kvm-amd kvm-intel"
PYTHON_PACKAGES="pytest pytest-timeout"
# Parts of Python's library that nothing here imports, or that are large.
LEFT_OUT="asyncio concurrent curses dbm distutils ensurepip http idlelib lib2to3 multiprocessing
pydoc_data sitecustomize.py sqlite3 test tkinter turtledemo venv wsgiref xmlrpc"

cannot() {
    echo "fpstate: the emulated machine is not to be had here: $1" >&2
    exit 3
}

# Debian 12's kernel, Python and C library run in the machine, so what was built here must fit them.
grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || cannot "this is not Debian 12"
[ "$(dpkg --print-architecture)" = amd64 ] || cannot "this is not amd64"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || cannot "$python is not Python 3.11"

update() {
    [ -n "${updated:-}" ] || apt-get update -qq >/dev/null 2>&1 || true # as root; else the lists have to do as they are
    updated=1
}

unpack() {
    mkdir -p "$2.new"
    for package in "$1"/*.deb; do
        dpkg -x "$package" "$2.new"
    done
    rm -rf "$1" "$2"
    mv "$2.new" "$2"
}

# The emulator and the tools, with what they need and this machine lacks.
fetch_host() {
    debs=$folder/$emulator.debs
    rm -rf "$debs" "$folder/$emulator.new"
    mkdir -p "$debs/partial"
    # shellcheck disable=SC2086
    apt-get install --yes -qq --download-only --reinstall --no-install-recommends -o "Dir::Cache::archives=$debs" \
        -o Debug::NoLocking=1 $HOST_PACKAGES >"$folder/apt.log" 2>&1 || return 1
    rm -rf "$debs/partial"
    unpack "$debs" "$folder/$emulator"
}

fetch_guest() {
    debs=$folder/guest.debs
    rm -rf "$debs" "$folder/guest.new"
    mkdir -p "$debs"
    image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [ -n "$image" ] || return 1
    # shellcheck disable=SC2086
    (cd "$debs" && apt-get download -qq "$image" $GUEST_PACKAGES) >"$folder/apt.log" 2>&1 || return 1
    unpack "$debs" "$folder/guest"
}

# Linux 6.12, of Debian 12's backports: before that no signal reaches a thread that closed protection key 0. It is
# fetched with lists of our own, so that this machine's stay as they are.
fetch_later_kernel() {
    debs=$folder/later.debs
    rm -rf "$debs" "$folder/later.new" "$folder/apt"
    mkdir -p "$debs" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main" \
        >"$folder/apt/sources.list"
    options="-o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists=$folder/apt/lists
        -o Dir::Cache=$folder/apt/cache -o Debug::NoLocking=1"
    # shellcheck disable=SC2086
    apt-get $options update -qq >"$folder/apt.log" 2>&1 || return 1
    # shellcheck disable=SC2086
    image=$(apt-cache $options depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [ -n "$image" ] || return 1
    # shellcheck disable=SC2086
    (cd "$debs" && apt-get $options download -qq "$image") >"$folder/apt.log" 2>&1 || return 1
    rm -rf "$folder/apt"
    unpack "$debs" "$folder/later"
}

guest_python() {
    "$folder/guest/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path \
        "$folder/guest/lib/x86_64-linux-gnu:$folder/guest/usr/lib/x86_64-linux-gnu" "$folder/guest/usr/bin/python3.11" "$@"
}

quietly() {
    "$python" -m pip --quiet --quiet --disable-pip-version-check "$@"
}

# What stays the same: a shell, the modules of KVM, Python, its library as compiled code, and pytest.
make_base() {
    base=$folder/base.new
    library=$base/usr/lib/python3.11
    rm -rf "$base" "$folder/site"
    for directory in bin dev lib/x86_64-linux-gnu lib64 modules proc sys tests tmp usr/bin usr/lib; do
        mkdir -p "$base/$directory"
    done
    cp -R "$folder/guest/usr/lib/python3.11" "$library"
    for part in $LEFT_OUT; do
        rm -rf "${library:?}/$part"
    done
    guest_python -m compileall -q -b --invalidation-mode unchecked-hash -s "$library" -p /usr/lib/python3.11 "$library"
    find "$library" -name '*.py' -delete
    cp "$folder/guest/bin/busybox" "$base/bin/"
    cp "$folder/guest/usr/bin/python3.11" "$base/usr/bin/"
    cp "$folder"/guest/lib64/ld-* "$base/lib64/" 2>/dev/null || cp "$folder/guest/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$base/lib64/"
    for name in libc.so.6 libm.so.6 libz.so.1 libexpat.so.1 libffi.so.8 liblzma.so.5 libgcc_s.so.1; do
        for place in "$folder/guest/lib/x86_64-linux-gnu/$name" "$folder/guest/usr/lib/x86_64-linux-gnu/$name"; do
            [ ! -e "$place" ] || cp -L "$place" "$base/lib/x86_64-linux-gnu/"
        done
    done
    for module in $MODULES; do
        find "$folder/guest/lib/modules" -name "$module.ko" -exec cp {} "$base/modules/" \;
    done
    # shellcheck disable=SC2086
    quietly install --no-compile --target "$base/site" $PYTHON_PACKAGES || cannot "pytest cannot be fetched from PyPI"
    rm -rf "$base/site/bin"
    guest_python -m compileall -q --invalidation-mode unchecked-hash -s "$base" "$base/site"
    cp "$here/sitecustomize.py" "$base/site/"
    rm -rf "$folder/base"
    mv "$base" "$folder/base"
}

# The package, built anew where a source of it is newer than the last build.
make_package() {
    if [ -d "$folder/package" ] && [ -e "$folder/package.started" ] && [ -z "$(cd "$project" && find src programs CMakeLists.txt pyproject.toml \
        ! -name '*.pyc' ! -name __pycache__ -newer "$folder/package.started")" ]; then
        return
    fi
    rm -rf "$folder/wheel" "$folder/package" "$folder/package.new"
    touch "$folder/package.started"
    quietly wheel --no-deps --wheel-dir "$folder/wheel" --config-settings=build-dir="$folder/cmake" "$project"
    quietly install --no-deps --no-compile --target "$folder/package.new" "$folder"/wheel/*.whl
    guest_python -m compileall -q --invalidation-mode unchecked-hash -s "$folder/package.new" -p /site "$folder/package.new"
    rm -rf "$folder/package.new/bin"
    mv "$folder/package.new" "$folder/package"
}

# What the machine has in memory: all that, and the tests.
make_root() {
    rm -rf "$folder/root"
    cp -R "$folder/base" "$folder/root"
    cp -R "$folder/package/." "$folder/root/site/"
    for tests in conftest.py recorded.py hardware integration vm; do # what runs in the machine chooses
        cp -R "$project/tests/$tests" "$folder/root/tests/"
    done
    find "$folder/root/tests" -name __pycache__ -type d -prune -exec rm -rf {} +
    # The machine has no compiler: what its tests would build.
    mkdir "$folder/root/tests/hostile"
    PYTHONPATH=$folder/package PYTHONDONTWRITEBYTECODE=1 "$python" "$project/tests/integration/hostile_guests.py" native "$folder/root/tests/hostile/native.bin"
    gcc -O1 -shared -fPIC -o "$folder/root/tests/hostile/undo.so" "$project/tests/integration/undo_way_back.c" -ldl
    cp "$here"/inside_*.py "$here/init" "$folder/root/"
    chmod +x "$folder/root/init"
}

if [ ! -d "$folder/$emulator" ] || [ "$(cat "$folder/$emulator.packages" 2>/dev/null)" != "$HOST_PACKAGES" ]; then
    update
    fetch_host || cannot "Debian's packages of $emulator cannot be fetched ($(tail -n 1 "$folder/apt.log"))"
    echo "$HOST_PACKAGES" >"$folder/$emulator.packages"
fi
if [ ! -d "$folder/guest" ]; then
    update
    fetch_guest || cannot "Debian's kernel and Python cannot be fetched ($(tail -n 1 "$folder/apt.log"))"
fi
kernel=guest
if [ "$part" = keys ]; then
    [ -d "$folder/later" ] || fetch_later_kernel || cannot "Debian's later kernel cannot be fetched ($(tail -n 1 "$folder/apt.log"))"
    kernel=later
fi
[ -d "$folder/base" ] || make_base
make_package
make_root
cp "$folder/$kernel"/boot/vmlinuz-* "$folder/vmlinuz"
(cd "$folder/root" && find . | LC_ALL=C sort | "$folder/guest/bin/busybox" cpio -o -H newc -R 0:0) >"$folder/initrd" 2>/dev/null
