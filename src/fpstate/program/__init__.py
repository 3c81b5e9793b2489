"""Guest programs: loading them, and knowing what the built-in ones must answer."""

from fpstate.program.block import Block
from fpstate.program.builtin import BUILTIN, Builtin
from fpstate.program.expected.canary import canary_pattern
from fpstate.program.expected.probe import parse_probe
from fpstate.program.fault import FAULTS, Fault
from fpstate.program.installed import flat_file, get_include, include_dir
from fpstate.program.load import Program, Segment

__all__ = [
    "BUILTIN",
    "FAULTS",
    "Block",
    "Builtin",
    "Fault",
    "Program",
    "Segment",
    "canary_pattern",
    "flat_file",
    "get_include",
    "include_dir",
    "parse_probe",
]
