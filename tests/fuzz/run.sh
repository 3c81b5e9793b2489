#!/usr/bin/env bash
# Fuzz every kind of source: run.sh PYTHON [options of campaign.py]. Without atheris, which guides the search and is for
# x86-64 Linux and a few Pythons alone, numbered inputs are tried instead, and that is said.
set -euo pipefail
python=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)

has() {
    "$python" -c "import $1" 2>/dev/null
}

if ! has atheris || ! has google.protobuf || ! has zstandard; then
    # One by one, for there may be no atheris, and the rest is needed all the same.
    "$python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["fuzz"], sep="\n")' "$project/pyproject.toml" |
        while read -r need; do
            "$python" -m pip install --quiet --disable-pip-version-check "$need" ||
                echo "$need cannot be installed for $("$python" --version)" >&2
        done
fi
if ! has google.protobuf || ! has zstandard; then
    echo "without protobuf and zstandard there is nothing to read CRIU images and zstd with: nothing was fuzzed" >&2
    exit 3
fi
exec "$python" "$here/campaign.py" "$@"
