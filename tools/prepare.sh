#!/bin/sh
# Make sure that the interpreter can make virtual environments and compile extensions.
# On Debian both come in packages of their own; root gets them installed, others are told their names.
set -eu
python=${1:-python3}

command -v "$python" >/dev/null || { echo "fpstate: no $python; set PYTHON to Python 3.11 or newer" >&2; exit 3; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "fpstate: $("$python" --version) is too old; set PYTHON to Python 3.11 or newer" >&2
    exit 3
}
lacks() {
    "$python" - <<'EOF'
import importlib.util, os, sys, sysconfig
missing = []
if importlib.util.find_spec("ensurepip") is None:
    missing.append("python3-venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    missing.append("python3-dev")
print(" ".join(missing))
EOF
}
missing=$(lacks)
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "fpstate: as root, this installs Debian packages that are missing: $missing" >&2
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    missing=$(lacks)
fi
[ -z "$missing" ] || { echo "fpstate: please install $missing (or the same for your distribution)" >&2; exit 3; }
