"""What the model has in its registers, held against a recorded register list."""

from __future__ import annotations

from typing import Any

from registers import COMPONENTS, CONTROL, REACH_32, Source, holds
from sequence_operations import enter

from fpstate.arch import Component, Layout
from fpstate.engine.model import Processor


def saved(processor: Processor, instruction: str = "xsave64") -> bytes:
    """Return what the program that recorded saw: a save of everything, in its own mode."""
    area = bytearray(Layout.standard(processor.cpu, processor.xcr0).size)
    with enter(processor, instruction) as wide:
        processor.xsave(area, wide=wide)
    return bytes(area)


def pkru_of(area: bytes, layout: Layout) -> int:
    """Return PKRU out of a standard image; 0 where the processor has none."""
    return int.from_bytes((Source(area, layout).read(Component.PKRU) or b"")[:4], "little")


def difference(
    area: bytes, layout: Layout, listed: list[Any], sources: dict[str, Source], *, short: bool = False
) -> str:
    """Say what a standard image has otherwise than a list that begins with the x87 control fields.

    ``short``: the list was read outside 64-bit mode, and has registers 0 to 7 alone.
    """
    own = Source(area, layout)
    for component, told in zip((CONTROL, *COMPONENTS), listed, strict=True):
        value = own.read(component)
        if value is None:
            continue
        reach = REACH_32.get(component) if short else None
        if reach != 0 and not holds(told, value[:reach], sources, component):
            return f"component {component} is {told}, the model has {value[:32].hex()}"
    return ""
