"""Processors in software: a register file, and every instruction that saves or restores it, faults included.

For what the processor here does not have: AMX, APX, MPX, PKRU, CET, user interrupts, supervisor components,
IA32_XFD. That the model does what a processor does is tested against the one here (docs/model.md).
"""

from __future__ import annotations

from fpstate.engine.model.behaviour import SOURCES, Behaviour, Pointers
from fpstate.engine.model.control import IA32_XFD, IA32_XFD_ERR, IA32_XSS
from fpstate.engine.model.machine import ALL
from fpstate.engine.model.processor import Processor
from fpstate.engine.model.register_file import RegisterFile, RestoreInfo
from fpstate.engine.model.x87 import Place

__all__ = [
    "ALL",
    "IA32_XFD",
    "IA32_XFD_ERR",
    "IA32_XSS",
    "SOURCES",
    "Behaviour",
    "Place",
    "Pointers",
    "Processor",
    "RegisterFile",
    "RestoreInfo",
]
