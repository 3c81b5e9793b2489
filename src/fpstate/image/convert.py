"""Any layout to any layout, with a record of what is lost.

Registers move, bytes do not: padding, reserved and software bytes of the source stay behind, and so do the
leftovers of absent components. What the target cannot hold is refused unless it is initial or named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import COMPONENTS, Component, component_name, components_in, mask_of
from fpstate.arch.layout import Format, Layout
from fpstate.errors import ConversionLoss
from fpstate.image.canonical import pointers_count
from fpstate.image.control import MXCSR_INIT
from fpstate.image.image import Image
from fpstate.image.initial import MXCSR_BLOCK
from fpstate.image.move import register_moves
from fpstate.image.register import ALIASES, REGISTERS, register_named
from fpstate.image.registers import initial_value

POINTERS: Final = ("fop", "fip", "fdp")
"""x87 registers that are state only while an unmasked x87 exception is pending."""
_NO_PLACE: Final = "the target has no place for it"
_SUPERVISOR: Final = "the standard format cannot hold supervisor components (SDM Vol.1 13.4.3)"
_NO_BITS: Final = "the target's MXCSR_MASK lacks these bits (SDM Vol.1 11.6.6)"
_NARROW: Final = "the target has 32 bits for it"
_NOT_STATE: Final = "no unmasked x87 exception is pending, so it is no state"


@dataclass(frozen=True, slots=True)
class LostRegister:
    """One register that the target cannot hold: its ``value``, and what it ``becomes`` there."""

    name: str
    value: int
    becomes: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What one component would lose; only registers whose value is not what they become are named."""

    component: int
    registers: tuple[LostRegister, ...]
    reason: str

    def __str__(self) -> str:
        names = [register.name for register in self.registers]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"{component_name(self.component)} ({', '.join(names[:4])}{more}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that differs in the target, although every register keeps its value."""

    what: str
    before: int
    after: int
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before:#x} becomes {self.after:#x}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Converted:
    """A new image, the losses that were allowed, and what changed without any loss."""

    image: Image
    losses: tuple[Loss, ...]
    changes: tuple[Change, ...]


def convert(
    image: Image,
    layout: Layout,
    *,
    drop: Iterable[int | str] = (),
    mxcsr_mask: int | None = None,
    narrow_pointers: bool = False,
) -> Converted:
    """Return a new image in ``layout`` with the registers of ``image``, and what that cost.

    XSTATE_BV keeps its bits: what was absent stays absent, and so initial. The SSE bit is added where the
    target would not state an MXCSR other than 1F80H without it (compacted, with AVX but no SSE).

    ``drop`` names what may be lost: components, by number or name, and registers. Nothing that fits is
    dropped. ``mxcsr_mask`` is that of the target's processor; without it, all bits of MXCSR are taken to
    fit. ``narrow_pointers`` leaves FIP and FDP 32 bits, as FSAVE has. Both pointers and FOP are state, and
    count as loss, only while an unmasked x87 exception is pending; else what becomes of them is a change.

    Raises ConversionLoss where something else would be lost, ImageError where header and layout of
    ``image`` disagree, and RegisterError for a name in ``drop`` that does not exist.
    """
    allowed_components, allowed_registers = _allowed(drop)
    mxcsr = image.registers.canonical("mxcsr")
    kept_mxcsr = mxcsr if mxcsr_mask is None else mxcsr & mxcsr_mask
    if not REGISTERS["mxcsr"].held_by(layout):
        kept_mxcsr = MXCSR_INIT
    losses = (*_losses(image, layout, kept_mxcsr), *_narrowed(image, layout, narrow_pointers))
    refused = tuple(
        loss
        for loss in losses
        if loss.component not in allowed_components
        and not {register.name for register in loss.registers} <= allowed_registers
    )
    if refused:
        raise ConversionLoss(
            "the conversion would lose " + "; ".join(map(str, refused)),
            refused,
            help="choose a target that holds it, or name what may be lost: "
            + ",".join(component_name(loss.component).lower() for loss in refused),
        )
    target = _moved(image, layout, kept_mxcsr, mxcsr_mask)
    if narrow_pointers:
        _narrow(target)
    gone = mask_of(*(loss.component for loss in losses)) & ~layout.mask
    return Converted(target, losses, tuple(_changes(image, target, gone)))


def component_number(name: str) -> int | None:
    """Return the number of a component by its name in any case, None where no component has that name."""
    try:
        return Component[name.upper()]
    except KeyError:
        return None


def _allowed(drop: Iterable[int | str]) -> tuple[set[int], set[str]]:
    components, registers = set(), set()
    for item in drop:
        number = component_number(item) if isinstance(item, str) else item
        if number is None:
            registers.add(register_named(str(item).lower()).name)
        else:
            components.add(int(number))
    return components, registers


def _losses(image: Image, layout: Layout, kept_mxcsr: int) -> Iterator[Loss]:
    for component in components_in(image.in_use):
        if component != Component.SSE and _fits(image.layout, layout, component):
            continue
        if component not in COMPONENTS:
            lost = _lost_bytes(image, layout, component)
        else:
            lost = tuple(_lost_registers(image, layout, component, kept_mxcsr))
        if lost:
            yield Loss(component, lost, _reason(layout, component, lost))


def _fits(source: Layout, target: Layout, component: int) -> bool:
    return component in target and target.size_of(component) >= source.size_of(component)


def _lost_registers(image: Image, layout: Layout, component: int, kept_mxcsr: int) -> Iterator[LostRegister]:
    for name in _names(component):
        value = image.registers.canonical(name)
        held = REGISTERS[name].held_by(layout)
        becomes = kept_mxcsr if name == "mxcsr" else value if held else initial_value(name)
        if value != becomes:
            yield LostRegister(name, value, becomes)


def _names(component: int) -> tuple[str, ...]:
    if component == Component.TILECFG:
        return ("tilecfg",)
    names = tuple(ALIASES.get(field.name, field.name) for field in COMPONENTS[component].fields)
    return ("mxcsr", *names) if component == Component.SSE else names


def _lost_bytes(image: Image, layout: Layout, component: int) -> tuple[LostRegister, ...]:
    """What a component without register names loses, as one number."""
    data = image.store.read_all(component)
    kept = data[: layout.size_of(component)] if component in layout else b""
    value, becomes = (int.from_bytes(each, "little") for each in (data, kept))
    return (LostRegister(component_name(component), value, becomes),) if value != becomes else ()


def _reason(layout: Layout, component: int, lost: tuple[LostRegister, ...]) -> str:
    if component in layout:
        only_mxcsr = [register.name for register in lost] == ["mxcsr"]
        return _NO_BITS if only_mxcsr else f"the target has {layout.size_of(component)} bytes for it"
    supervisor = component in COMPONENTS and COMPONENTS[component].supervisor
    return _SUPERVISOR if supervisor and layout.format is Format.STANDARD else _NO_PLACE


def _narrowed(image: Image, layout: Layout, narrow: bool) -> Iterator[Loss]:
    if not narrow or Component.X87 not in layout:
        return
    values = ((name, image.registers.canonical(name)) for name in ("fip", "fdp"))
    lost = tuple(LostRegister(name, value, value & 0xFFFFFFFF) for name, value in values if value >> 32)
    if lost:
        yield Loss(Component.X87, lost, _NARROW)


def _narrow(target: Image) -> None:
    if target.store.present(Component.X87):
        target.registers["fiseg"] = target.registers["foseg"] = 0


def _moved(image: Image, layout: Layout, mxcsr: int, mxcsr_mask: int | None) -> Image:
    """Move what both layouts hold; MXCSR comes last, as it may need the SSE bit where nothing carries it."""
    target = Image.initial(layout, "converted")
    shared = image.store.xstate_bv() & layout.mask
    for component in components_in(shared):
        target.store.activate(component)
    source_view, target_view = image.store.view, target.store.view
    for at, to, size in register_moves(image.layout, layout, shared):
        target_view[to : to + size] = source_view[at : at + size]
    if REGISTERS["mxcsr"].held_by(layout):
        stated = image.store.read(MXCSR_BLOCK, 4, 4)
        if not target.store.present(MXCSR_BLOCK):
            target.store.write(MXCSR_BLOCK, 0, mxcsr.to_bytes(4, "little"))
        target_view[24:28] = mxcsr.to_bytes(4, "little")
        target_view[28:32] = stated if mxcsr_mask is None else mxcsr_mask.to_bytes(4, "little")
    return target


def _changes(image: Image, target: Image, gone: int) -> Iterator[Change]:
    expected, xstate_bv = image.xstate_bv & ~gone, target.xstate_bv
    if xstate_bv & ~expected:
        yield Change("XSTATE_BV", expected, xstate_bv, "the bit of SSE is needed to state MXCSR")
    elif expected != xstate_bv:
        yield Change("XSTATE_BV", expected, xstate_bv, "initial components for which there is no place")
    if not image.store.present(MXCSR_BLOCK):
        stated = int.from_bytes(image.store.view[24:28], "little")
        if image.layout.format is Format.STANDARD and stated != MXCSR_INIT:
            reason = "neither SSE nor AVX is present, so bytes 24 to 27 are no part of the state"
            yield Change("mxcsr", stated, MXCSR_INIT, reason)
    mask, target_mask = (each.store.read(MXCSR_BLOCK, 4, 4) for each in (image, target))
    if mask != target_mask:
        before, after = (int.from_bytes(each, "little") for each in (mask, target_mask))
        yield Change("mxcsr_mask", before, after, "it describes a processor, not a state")
    control, status = (image.registers.canonical(name) for name in ("fctrl", "fstat"))
    if not pointers_count(control, status):
        for name in POINTERS:
            before, after = (each.registers.canonical(name, exact=True) for each in (image, target))
            if before != after:
                yield Change(name, before, after, _NOT_STATE)
