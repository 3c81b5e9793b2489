#!/bin/sh
# Run the unit and the property tests on every CPython from 3.11 on that this machine has, but for the one that has run
# all tests already: every_python.sh PYTHON [OTHER...]. PYTHON builds one wheel, which is installed for each of the
# others; without OTHER they are looked for on PATH and where pyenv and uv keep theirs. Exit code 1 where tests fail.
set -eu
python=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/.." && pwd)
folder=$project/build/pythons
ASK='import sys
usable = sys.implementation.name == "cpython" and sys.version_info >= (3, 11)
free_threaded = "t" in getattr(sys, "abiflags", "")  # they take no abi3 extension
print("%d.%d" % sys.version_info[:2] if usable and not free_threaded else "")'

version() {
    "$1" -c "$ASK" 2>/dev/null || true
}

others() {
    {
        echo "$PATH" | tr : '\n'
        printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/*/bin
    } | while read -r place; do
        for found in "$place"/python3.[0-9]*; do
            case ${found##*/} in
                python3.[0-9] | python3.[0-9][0-9]) [ -x "$found" ] && echo "$found" ;;
            esac
        done
    done
}

wheel=
build() {
    [ -z "$wheel" ] || return 0
    rm -rf "$folder/wheel"
    "$python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$folder/wheel" \
        --config-settings=build-dir="$folder/cmake" "$project"
    wheel=$(echo "$folder"/wheel/*.whl)
}

try() {
    venv=$folder/$2
    rm -rf "$venv"
    if ! "$1" -m venv "$venv" >"$folder/venv.log" 2>&1; then
        echo "pythons: $1 ($2) makes no virtual environment, and is left out: $(tail -n 1 "$folder/venv.log")" >&2
        return 0
    fi
    build
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$wheel[test]" || {
        echo "pythons: what the tests need cannot be installed for $1 ($2)" >&2
        return 1
    }
    echo "pythons: $1 ($2)"
    (cd "$project" && "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/unit tests/property)
}

mkdir -p "$folder"
seen=" "
[ $# -gt 0 ] || seen=" $(version "$python") "
failed=0
tried=0
for other in "${@:-$(others)}"; do
    for each in $other; do
        number=$(version "$each")
        case $seen in *" $number "*) continue ;; esac
        [ -n "$number" ] || continue
        seen="$seen$number "
        tried=$((tried + 1))
        try "$each" "$number" || failed=1
    done
done
[ "$tried" -gt 0 ] || echo "pythons: no other CPython from 3.11 on is here; nothing more runs"
exit "$failed"
