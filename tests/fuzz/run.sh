#!/usr/bin/env bash
# Fuzz every source in turn: run.sh PYTHON [SECONDS], the seconds in all. Exit 3 where atheris cannot be had.
set -euo pipefail
python=$1
seconds=${2:-60}
here=$(cd "$(dirname "$0")" && pwd)
finds=build/fuzz
targets=(core minidump criu raw)

if ! "$python" -c 'import atheris, google.protobuf' 2>/dev/null; then
    project=$(cd "$here/../.." && pwd)
    needs=$("$python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["fuzz"])' "$project/pyproject.toml")
    # shellcheck disable=SC2086 - one word each
    if ! "$python" -m pip install --quiet --disable-pip-version-check $needs; then
        echo "atheris cannot be installed for $("$python" --version): nothing was fuzzed" >&2
        exit 3
    fi
fi
# The fuzzer ends the process, so that Python cannot clear its folder away.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p "$finds"
for target in "${targets[@]}"; do
    echo "== $target, $((seconds / ${#targets[@]})) seconds"
    "$python" "$here/fuzz_$target.py" -max_total_time=$((seconds / ${#targets[@]})) \
        -artifact_prefix="$finds/$target-" -verbosity=0 -print_final_stats=1
done
