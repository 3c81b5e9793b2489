"""The memory that an instruction is given: its length and address checked before any byte is touched."""

from __future__ import annotations

import struct
from typing import Final

from fpstate.engine.model.fault import ALIGNMENT, PAGE, PROTECTION, refusal
from fpstate.engine.model.machine import Machine

XSTATE_BV: Final = 512
RESERVED: Final = 528
HEADER: Final = struct.Struct("<QQ")
WORD: Final = struct.Struct("<I")
MXCSR: Final = 24
XSAVE_ALIGNMENT: Final = 64
FXSAVE_ALIGNMENT: Final = 16
SSE_START: Final = 160
SSE_END: Final = 416

Area = bytearray | memoryview
"""Writable memory; a memoryview has the format ``B``."""


def check_alignment(machine: Machine, address: int | None, alignment: int) -> None:
    """Raise #GP, or #AC where alignment is checked at CPL 3, for an address that is not a multiple."""
    if address is None or not address % alignment:
        return
    vector = ALIGNMENT if machine.alignment_check and machine.cpl == 3 else PROTECTION
    raise refusal("XS006", f"the address {address:#x} is not a multiple of {alignment}", vector=vector)


def check_length(area: Area | bytes, needed: int, rule: str) -> None:
    """Raise #PF where memory ends before what the instruction touches."""
    if len(area) < needed:
        raise refusal(rule, f"bytes up to {needed} are touched, the area has {len(area)}", vector=PAGE)
