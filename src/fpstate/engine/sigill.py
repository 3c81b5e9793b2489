"""What a guest's SIGILL was: a component that it may not use, a tile instruction without a configuration, or neither.

Linux answers #NM of a component that IA32_XFD holds back, and that the process has no permission for, with SIGILL too
(``exc_device_not_available``). si_code alone tells it from #UD: the trap number is that of the thread's last fault.
"""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

from fpstate.arch.component import AMX, Component, components_in, mask_of
from fpstate.arch.exception import ILL_ILLOPC, UD, vector_of

_TILECFG: Final = mask_of(Component.TILECFG)
INSTRUCTION_BYTES: Final = 5
"""Bytes from the start of an instruction by which those below are known."""
_VEX3, _MAP_0F38 = 0xC4, 2
_W_L_AND_NO_OPERAND: Final = (0xFC, 0x78)
_REGISTER_FORM: Final = (0xC7, 0xC0)
_SIB_FORM: Final = (0x07, 0x04)
_TILE_OPCODES: Final = {
    (0x49, 3): _REGISTER_FORM,  # TILEZERO
    (0x4B, 1): _SIB_FORM,  # TILELOADDT1
    (0x4B, 2): _SIB_FORM,  # TILESTORED
    (0x4B, 3): _SIB_FORM,  # TILELOADD
}
"""By opcode and VEX.pp what ModRM has, as mask and value. Every AMX processor has these four (SDM Vol. 2)."""


class Fault(NamedTuple):
    """What the core keeps of a signal; ``trap`` may be stale, ``vector`` is not."""

    signal: int
    si_code: int
    trap: int
    error_code: int
    address: int

    @property
    def vector(self) -> int:
        """The exception's vector."""
        return vector_of(self.signal, self.si_code, self.trap)


def denied_component(fault: Fault, dynamic: int, permitted: int) -> int | None:
    """Return the component that a guest was denied; None where that is not why it got the signal.

    ``dynamic``: what IA32_XFD can hold back on this processor; ``permitted``: what the guest may use.
    """
    if fault.signal != signal.SIGILL or fault.si_code != ILL_ILLOPC:
        return None
    return next(components_in(dynamic & ~permitted), None)


def lacks_tile_configuration(fault: Fault, code: bytes, in_use: int, enabled: int) -> bool:
    """Whether #UD was for want of a tile configuration: a tile instruction, and TILECFG initial in the saved state.

    ``code``: the bytes at the instruction; ``enabled``: XCR0. Without both AMX components there, each tile instruction
    is undefined anyway.
    """
    if fault.signal != signal.SIGILL or fault.vector != UD or enabled & AMX != AMX or in_use & _TILECFG:
        return False
    if len(code) < INSTRUCTION_BYTES or code[0] != _VEX3 or code[1] & 0x1F != _MAP_0F38:
        return False
    form = _TILE_OPCODES.get((code[3], code[2] & 3))
    return form is not None and _has(code[4], form) and _has(code[2], _W_L_AND_NO_OPERAND)


def _has(byte: int, form: tuple[int, int]) -> bool:
    mask, value = form
    return byte & mask == value and (form is not _SIB_FORM or byte < 0xC0)
