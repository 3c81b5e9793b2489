"""What a signal does to registers under Linux: they are saved in a frame, and loaded again by sigreturn."""

from __future__ import annotations

from fpstate.arch import Component, mask_of
from fpstate.engine.model import Processor
from fpstate.engine.model.contents import pending, without_pointers

_STATED = mask_of(Component.X87, Component.SSE, Component.PKRU)
"""What a frame states whatever the registers are."""


def pass_through_a_frame(processor: Processor) -> None:
    """Do to the model what a handled exception did to the processor between two instructions."""
    file = processor.file
    if file.hides_pointers and not pending(file.values[0]):
        file.values[0] = without_pointers(file.values[0])
    loaded = file.not_initial() if file.tracks_values else file.in_use | _STATED
    file.in_use, file.info, file.selectors = 0, None, (0, 0)
    file.in_use = loaded & processor.xcr0
