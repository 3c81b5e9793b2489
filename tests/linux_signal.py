"""Signals under Linux: which one an exception becomes, and what a handled one does to registers.

They are saved in a frame, and loaded again by sigreturn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fpstate.arch import Component, mask_of
from fpstate.engine.model import Processor
from fpstate.engine.model.contents import pending, without_pointers
from fpstate.engine.model.fault import NOT_AVAILABLE, PAGE, PROTECTION, UNDEFINED, X87_ERROR
from fpstate.errors import ProcessorFault

Told = list[int | None]
"""What recordings say of a signal: its number, si_code and the trap number, None where that is stale."""

SIGNALS: Final[Mapping[int, tuple[Told, ...]]] = {
    UNDEFINED: ([4, 2, 6],),
    NOT_AVAILABLE: ([4, 1, None],),
    PROTECTION: ([11, 128, 13],),
    PAGE: ([11, 2, 14], [11, 1, 14]),
}
"""By vector. A page fault has another si_code where the page is there and closed."""
REFUSED_FRAME: Final[Told] = [11, 128, None]
"""What a task gets whose frame sigreturn does not take."""
_SI_CODES: Final = ((0x01, 7), (0x04, 3), (0x08, 4), (0x12, 5), (0x20, 6))
"""Flags of FSW that are not masked, and the si_code of SIGFPE (Linux ``fpu__exception_code``)."""

_STATED = mask_of(Component.X87, Component.SSE, Component.PKRU)
"""What a frame states whatever the registers are."""


def signal_of(fault: ProcessorFault, processor: Processor) -> Told:
    """Return the signal that an exception of the model becomes."""
    if fault.vector != X87_ERROR:
        return SIGNALS[fault.vector][0]
    x87 = processor.file.values[Component.X87]
    raised = x87[2] & ~x87[0]
    return [8, next(code for flags, code in _SI_CODES if raised & flags), X87_ERROR]


def pass_through_a_frame(processor: Processor) -> None:
    """Do to the model what a handled exception did to the processor between two instructions."""
    file = processor.file
    if file.hides_pointers and not pending(file.values[0]):
        file.values[0] = without_pointers(file.values[0])
    loaded = file.not_initial() if file.tracks_values else file.in_use | _STATED
    file.in_use, file.info, file.selectors = 0, None, (0, 0)
    file.in_use = loaded & processor.xcr0
