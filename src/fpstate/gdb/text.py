"""The words of the gdb commands; no gdb here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fpstate.arch.component import mask_text
from fpstate.command.tile_report import configuration, configuration_words, is_tile, tile, tile_words
from fpstate.errors import FpStateError
from fpstate.image import Float80, FpException, Image, Registers
from fpstate.image.register import register_named
from fpstate.image.tag import Tag
from fpstate.source.thread import ThreadState

if TYPE_CHECKING:
    from fpstate.gdb.opinion import Disagreement

_LISTED = 8
_EXCEPTIONS = {
    FpException.INVALID: "invalid",
    FpException.DENORMAL: "denormal",
    FpException.ZERO_DIVIDE: "zero divide",
    FpException.OVERFLOW: "overflow",
    FpException.UNDERFLOW: "underflow",
    FpException.PRECISION: "precision",
}


def options(arguments: Sequence[str], known: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into the options that are known, each with a value, and the rest."""
    values, rest, left = dict(known), [], iter(arguments)
    for argument in left:
        if not argument.startswith("-"):
            rest.append(argument.removeprefix("$"))
        elif argument not in known:
            raise FpStateError(f"no option {argument}", help="options: " + ", ".join(known))
        elif (value := next(left, None)) is None:
            raise FpStateError(f"{argument} needs a value")
        else:
            values[argument] = value
    return values, rest


def heading(thread: ThreadState, origin: str) -> Iterator[str]:
    """Say whose state this is, where it comes from and where its layout was learnt."""
    image = thread.image
    name = f" {thread.name!r}" if thread.name else ""
    yield f"thread {thread.tid}{name}, from {origin}"
    yield (
        f"layout from: {image.layout_source}; {image.layout.size} bytes of {mask_text(image.layout.mask)};"
        f" in use: {mask_text(image.in_use)}"
    )
    for finding in thread.findings:
        yield f"{finding.severity.value} {finding.id}: {finding.message}"


def registers(image: Image, names: Sequence[str], lanes: str) -> Iterator[str]:
    """Show the named registers, or without names all that are not initial; with ``lanes`` split into these."""
    values = image.registers
    shown = list(names) or list(values.in_use())
    width = max((len(name) for name in shown), default=0)
    for name in shown:
        if is_tile(name):
            yield from _tile(values, name, lanes, width)
        else:
            yield f"{name:{width}}  {_value(values, name, lanes)}"
    if not shown:
        yield "every register is initial"


def environment(image: Image) -> Iterator[str]:
    """Decode what decides how the thread computes."""
    values = image.registers
    mxcsr, control, status = values.mxcsr, values.control_word, values.status_word
    yield f"MXCSR {mxcsr.bits:#06x}  rounding {mxcsr.rounding.name.lower()}"
    yield f"  flush to zero (FTZ) {_on(mxcsr.ftz)}, denormals are zero (DAZ) {_on(mxcsr.daz)}"
    yield f"  flags: {_names(mxcsr.exceptions)}; trapping: {_names(~mxcsr.masks)}"
    yield (
        f"FCW   {control.bits:#06x}  rounding {control.rounding.name.lower()},"
        f" precision {control.precision.name.lower()}"
    )
    pending = ", one is pending" if status.pending(control) else ""
    yield f"  flags: {_names(status.exceptions)}; trapping: {_names(~control.masks)}{pending}"
    depth = values["ftag_abridged"].bit_count()
    full = values["ftag"]
    tags = " ".join(f"R{index}={Tag(full >> 2 * index & 3).name.lower()}" for index in range(8))
    yield f"FSW   {status.bits:#06x}  top {status.top}, {depth} of 8 registers in use"
    if depth:
        yield f"  {tags}"
    if "pkru" in values:
        pkru = values["pkru"]
        denied = [
            f"{key}:{'none' if pkru >> 2 * key & 1 else 'read'}" for key in range(16) if pkru >> 2 * key & 3
        ]
        yield f"PKRU  {pkru:#010x}  " + (
            f"restricted keys: {' '.join(denied)}" if denied else "no key restricted"
        )


def disagreements(found: Sequence[Disagreement], version: str) -> Iterator[str]:
    """Say where gdb reads something else, and that the bytes are right."""
    if not found:
        return
    yield (
        f"gdb {version} reads {len(found)} of these registers otherwise, from other offsets:"
        " believe the values above"
    )
    for each in found[:_LISTED]:
        theirs = "nothing" if each.theirs is None else f"{each.theirs:#x}"
        yield f"  {each.register}: gdb has {theirs}, the bytes say {each.ours:#x}"
    if len(found) > _LISTED:
        yield f"  and {len(found) - _LISTED} more: " + " ".join(each.register for each in found[_LISTED:])


def _tile(values: Registers, name: str, lanes: str, width: int) -> Iterator[str]:
    """Show the rows of a tile that are configured, or all where nothing is."""
    decoded = tile(values, name, lanes or "hex", whole=False)
    yield f"{name:{width}}  {tile_words(decoded)}"
    for index, row in enumerate(decoded["data"]):
        yield f" row {index:<{max(width - 4, 2)}} {row if isinstance(row, str) else ' '.join(map(str, row))}"


def _value(values: Registers, name: str, lanes: str) -> str:
    register = register_named(name)
    value = values[name]
    if register.name == "mxcsr":
        return str(values.mxcsr)
    if register.name == "fctrl":
        return str(values.control_word)
    if register.name == "fstat":
        return str(values.status_word)
    bits = f"{value:#0{2 * register.size + 2}x}"
    if register.name == "tilecfg":
        return f"{bits} {configuration_words(configuration(value))}"
    if register.size == 10:
        return f"{bits} {Float80(value)}"
    if lanes and register.size >= 8:
        return f"{lanes}: " + " ".join(
            f"{lane:g}" if isinstance(lane, float) else str(lane) for lane in values.lanes(name, lanes)
        )
    return bits


def _names(exceptions: FpException) -> str:
    return ", ".join(name for each, name in _EXCEPTIONS.items() if exceptions & each) or "none"


def _on(flag: bool) -> str:
    return "on" if flag else "off"
