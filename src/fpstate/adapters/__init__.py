"""Registers as the dictionaries of other tools: one module a tool, and the values in its own types."""

from fpstate.adapters.gdb import from_gdb, to_gdb
from fpstate.adapters.libdebug import from_libdebug, to_libdebug
from fpstate.adapters.unicorn import from_unicorn, to_unicorn

__all__ = ["from_gdb", "from_libdebug", "from_unicorn", "to_gdb", "to_libdebug", "to_unicorn"]
