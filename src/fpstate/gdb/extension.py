"""What gdb's ``source`` reads: it finds the package that this file belongs to and adds the commands."""

import os
import sys

import gdb

if sys.version_info < (3, 11):  # noqa: UP036 - gdb brings its own Python
    raise gdb.GdbError(f"fpstate needs Python 3.11 or newer; this gdb has {sys.version.split()[0]}")

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, _ROOT)
try:
    from fpstate.gdb import commands
finally:
    sys.path.remove(_ROOT)

commands.register()
