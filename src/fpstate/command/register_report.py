"""One thread's state as JSON-ready data: which registers, their exact bits, and what they mean in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fpstate.command import tile_report
from fpstate.command.finding_report import finding_data
from fpstate.errors import FpStateError, NumberError
from fpstate.image.canonical import pointers_count
from fpstate.image.finding import Finding, Severity
from fpstate.image.float80 import FINITE, Float80
from fpstate.image.register import REGISTERS, register_named
from fpstate.image.registers import Registers, initial_value
from fpstate.image.tag import Tag, physical_register
from fpstate.source.thread import ThreadState

if TYPE_CHECKING:
    from fpstate.image.bitfield import BitRegister

_VECTORS: Final = {"xmm": (1 << 128) - 1, "ymm": (1 << 256) - 1, "zmm": (1 << 512) - 1}
_LANED: Final = ("xmm", "ymm", "zmm", "mm")
_POINTERS: Final = frozenset({"fop", "fip", "fioff", "fiseg", "fdp", "fooff", "foseg"})
_KEY_ACCESS: Final = ("read-write", "no access", "read-only", "no access")
"""By the two bits of a key in PKRU, write-disable over access-disable (SDM Vol.3 4.6.2)."""
_VISIBLE_IN_32_BITS: Final = 8
_DIGITS: Final = 21


class Wanted(NamedTuple):
    """What the caller asked to see; ``names`` empty for all that are not initial, or all with ``all``."""

    all: bool = False
    names: tuple[str, ...] = ()
    values: bool = True
    lane_type: str = "hex"


def describe(thread: ThreadState, wanted: Wanted, *, views: bool) -> dict[str, Any]:
    """Return a thread as data; with ``views``, registers that are parts of wider ones stand for themselves too.

    A state that cannot be decoded becomes a finding, and its registers stay unknown.
    """
    image = thread.image
    findings = list(thread.findings)
    registers: dict[str, int] = {}
    in_use: str | None = None
    try:
        in_use = hex(image.in_use)
        registers = dict(_values(thread, wanted, views))
    except FpStateError as error:
        findings.append(undecodable(error))
    return {
        "tid": thread.tid,
        "name": thread.name,
        "machine": thread.machine,
        "layout_source": image.layout_source,
        "size": image.layout.size,
        "xcr0": None if thread.xcr0 is None else hex(thread.xcr0),
        "xstate_bv": hex(image.xstate_bv),
        "in_use": in_use,
        "registers": {
            name: exact(value, _size(name)) if wanted.values else None for name, value in registers.items()
        },
        "decoded": dict(_decoded(image.registers, registers, wanted)) if wanted.values else {},
        "findings": [finding_data(finding) for finding in findings],
    }


def undecodable(error: FpStateError) -> Finding:
    """Say that an image contradicts itself, as a finding of the thread it belongs to."""
    offset = getattr(error, "offset", None)
    return Finding("SRC005", Severity.ERROR, f"cannot be decoded: {error}", offset=offset, help=error.help)


def exact(value: int, size: int) -> str:
    """Return a value of ``size`` bytes with all its hexadecimal digits."""
    return f"{value:#0{2 + 2 * size}x}"


def _values(thread: ThreadState, wanted: Wanted, views: bool) -> Iterator[tuple[str, int]]:
    """Yield the registers that are to be shown, with their values as they are stored."""
    registers = thread.image.registers
    if wanted.names:
        yield from (
            (register_named(name).name, registers[name]) for name in wanted.names if name in registers
        )
        return
    values = {name: registers[name] for name in registers.names(widest=True)}
    pointers = "fctrl" in values and pointers_count(values["fctrl"], values["fstat"])
    for name in _shown_names(registers, values, views):
        value = _value(registers, values, name)
        if value == _initial(name) and (not wanted.all or _out_of_reach(thread, name)):
            continue
        if wanted.all or pointers or name not in _POINTERS:
            yield name, value


def _shown_names(registers: Registers, widest: Collection[str], views: bool) -> Iterator[str]:
    if views:
        yield from (name for name in registers.names() if name in widest or not _is_part(name))
    else:
        yield from ("ftag" if name == "ftag_abridged" else name for name in widest)


def _value(registers: Registers, widest: Mapping[str, int], name: str) -> int:
    """Return a register, cut from a wider one that was read already where there is one."""
    if name in widest:
        return widest[name]
    kind, index = _vector(name)
    for wider in ("ymm", "zmm") if index else ():
        if wider + index in widest:
            return widest[wider + index] & _VECTORS[kind]
    return registers[name]


@cache
def _size(name: str) -> int:
    return REGISTERS[name].size


@cache
def _initial(name: str) -> int:
    return initial_value(name)


def _out_of_reach(thread: ThreadState, name: str) -> bool:
    """Tell whether code of this machine cannot name the register; it is shown where it holds something."""
    index = _vector(name.removesuffix("h"))[1]
    return thread.machine == "i386" and index != "" and int(index) >= _VISIBLE_IN_32_BITS


def _vector(name: str) -> tuple[str, str]:
    """Split the name of a whole vector into kind and number; the number is empty for every other register."""
    kind, index = name[:3], name[3:]
    return (kind, index) if kind in _VECTORS and index.isdigit() else (kind, "")


def _is_part(name: str) -> bool:
    """Tell whether a register is half a vector, or an MMX register, which is part of an x87 one."""
    return name.startswith("mm") or (name[:3] in _VECTORS and name.endswith("h"))


def _decoded(registers: Registers, values: dict[str, int], wanted: Wanted) -> Iterator[tuple[str, Any]]:
    words = {"mxcsr": "mxcsr", "fctrl": "control_word", "fstat": "status_word"}
    for name in values:
        if name in words:
            yield name, _fields(getattr(registers, words[name]))
        elif name == "ftag":
            yield name, _tags(values[name], registers.status_word.top)
        elif name.startswith("st") and name[2:].isdigit():
            yield name, _number(registers, int(name[2]))
        elif name == "pkru":
            yield name, {str(key): _KEY_ACCESS[values[name] >> 2 * key & 3] for key in range(16)}
        elif name == "tilecfg":
            yield name, tile_report.configuration(values[name])
        elif tile_report.is_tile(name):
            yield name, tile_report.tile(registers, name, wanted.lane_type, whole=wanted.all)
        elif wanted.lane_type != "hex" and name.startswith(_LANED):
            yield name, lanes(registers, name, wanted.lane_type)


def _fields(word: BitRegister) -> dict[str, Any]:
    """Return the named fields: exceptions by their letters, enumerations by name, bits as booleans."""
    fields: dict[str, Any] = {}
    for name in type(word).field_names():
        value = getattr(word, name)
        if hasattr(value, "letters"):
            fields[name] = value.letters()
        elif isinstance(value, bool) or type(value) is int:
            fields[name] = value
        else:
            fields[name] = value.name.lower()
    return fields


def _tags(full: int, top: int) -> dict[str, str]:
    """Return the tags in words by their name on the stack; the tag word goes by physical register."""
    return {
        f"st{index}": Tag(full >> 2 * physical_register(index, top) & 3).name.lower() for index in range(8)
    }


def _number(registers: Registers, index: int) -> dict[str, str]:
    """Return class, exact value, and the decimal digits that tell ST(index) from its neighbours."""
    value = registers.st(index)
    return {"class": value.kind.value, "value": str(value), "decimal": decimal(value)}


def decimal(value: Float80) -> str:
    """Return 21 significant digits, which no two 80-bit values share; what is no number by its class."""
    if value.kind not in FINITE:
        return str(value.to_float_lossy())
    from decimal import Context, Decimal

    fraction = abs(value.fraction())
    digits = Context(prec=_DIGITS).divide(Decimal(fraction.numerator), Decimal(fraction.denominator))
    return f"{'-' if value.sign else ''}{digits}"


def lanes(registers: Registers, name: str, lane_type: str) -> list[int | float | str] | None:
    """Return a register as lanes, lowest first, with what JSON has no number for as text; None if none fit."""
    try:
        found = registers.lanes(name, lane_type)
    except (FpStateError, NumberError):
        return None
    return [lane if math.isfinite(lane) else repr(lane) for lane in found]
