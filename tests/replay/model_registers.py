"""What the model has in its registers, held against a recorded register list."""

from __future__ import annotations

from typing import Any

from register_letters import COMPONENTS, CONTROL, INITIAL, REACH_32, Source, holds
from sequence_operations import enter

from fpstate.arch import Component, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT, MIN_SIZE
from fpstate.engine.model import Processor

_KEY_0 = 3
"""Access to key 0, which the recording programs keep open."""
_SSE = mask_of(Component.SSE)


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


def restored(
    processor: Processor, answer: dict[str, Any], memory: bytes, kept: Source, *, refused: bool
) -> str:
    """Say what registers are otherwise than recorded after a restore of ``memory``, or after its refusal."""
    layout = Layout.standard(processor.cpu, processor.xcr0)
    area, (mxcsr, pkru, *listed) = saved(processor), answer["g"]
    own = pkru_of(area, layout)
    found, recorded = [processor.file.mxcsr, own, own & ~_KEY_0], [mxcsr, answer.get("k", pkru), pkru]
    if found != recorded:
        return f"MXCSR, PKRU, and PKRU with key 0 open are {recorded}, the model says {found}"
    if not refused and not is_in_use(processor, processor.xgetbv(1), answer["x"]):
        return f"XINUSE {answer['x']:#x}, the model says {processor.xgetbv(1):#x}"
    given = Source(memory.ljust(MIN_SIZE, b"\0"), _layout_of(memory, processor, layout))
    return difference(area, layout, listed, {"L": given, "K": kept, "I": INITIAL})


def is_in_use(processor: Processor, foretold: int, recorded: int, *, switched: bool = False) -> bool:
    """Tell whether XINUSE is as foretold.

    Where it goes by value it may have more: a switch to another task and back leaves bits of what is initial. Where it
    counts writes, one to a task that a tracer held (``switched``) left SSE's in 3 of 2,000 on an Intel processor.
    """
    more = processor.xcr0 if processor.behaviour.tracks_values else _SSE * switched
    return foretold | recorded & more == recorded


def _layout_of(memory: bytes, processor: Processor, standard: Layout) -> Layout:
    """The layout of an image by its own format; zeros follow it."""
    xcomp_bv = int.from_bytes(memory[520:528], "little")
    if len(memory) >= MIN_SIZE and xcomp_bv & COMPACTED_BIT:
        return Layout.compacted(processor.cpu, xcomp_bv & processor.xcr0)
    return standard
