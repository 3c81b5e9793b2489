#!/bin/sh
# Write tools/locked.txt anew: every package that CI installs from the index, with the hashes of all its files, for each
# Python from 3.11 on and each platform. Run it after a change of the requirements in pyproject.toml; with --upgrade it
# takes the newest versions that these allow, else it keeps those that are locked.
set -eu
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "fpstate: please install uv (pip install uv)" >&2; exit 3; }
python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --extra test --extra lint --output-file tools/locked.txt "$@" pyproject.toml -
