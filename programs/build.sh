#!/bin/sh
# Build the guest programs into the source tree, for work on a checkout that is not installed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-"$root/build/programs"}
cmake -S "$root/programs" -B "$build" -G Ninja >/dev/null
cmake --build "$build"
cmake --install "$build" --prefix "$root/src" >/dev/null
