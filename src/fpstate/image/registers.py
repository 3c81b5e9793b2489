"""The registers of an image by debugger name: exact integers in, exact integers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar, overload

from fpstate.arch.component import Component, mask_text
from fpstate.errors import NumberError, RegisterError
from fpstate.image import lane, x87
from fpstate.image.canonical import pointers_count
from fpstate.image.control import ControlWord, Mxcsr, StatusWord
from fpstate.image.float80 import Float80
from fpstate.image.initial import MXCSR_BLOCK, initial_bytes
from fpstate.image.register import ALIASES, REGISTERS, Register, held_names, register_named, widest_names
from fpstate.image.store import ComponentStore

if TYPE_CHECKING:
    from fpstate.image.image import Image

T = TypeVar("T")

_POINTERS: Final = frozenset({"fop", "fip", "fdp"})
_LEGACY_INDEX: Final = {
    **{f"st{index}": index for index in range(8)},
    **{f"mm{index}": index for index in range(8)},
}


class Registers(Mapping[str, int]):
    """The registers that an image's layout holds, as a mapping from name to unsigned integer.

    Reading decodes that register alone; a component that the image lacks reads as initial. Assigning writes
    every part in place and makes the components that it touches present, initialising what else is in them,
    so that no leftover byte becomes a value. Beyond the bytes: ``st0``-``st7`` mark their register as not
    empty; ``mm0``-``mm7`` act as MMX instructions do (TOP 0, all tags valid, exponent FFFF); ``ftag`` is the
    full tag word, computed on reading and kept as ``ftag_abridged``; an ``mxcsr`` other than 1F80H makes SSE
    present, without which a compacted image would lose it; ``fstat`` moves TOP, but not the stack's slots.

    ``mxcsr_mask`` is a property of the processor that made the image, 0 where the image does not state it.
    Raises RegisterError for names that do not exist or that the layout has no room for, for values that do
    not fit, and for writing to a read-only image; ImageError where header and layout disagree.
    """

    __slots__ = ("_store",)

    def __init__(self, image: Image) -> None:
        self._store = image.store

    def __getitem__(self, name: str) -> int:
        register = self._held(name)
        return self._value(register)

    def __setitem__(self, name: str, value: int) -> None:
        register = self._held(name)
        if not isinstance(value, int) or not 0 <= value < 1 << 8 * register.size:
            shown = f"{value:#x}" if isinstance(value, int) else repr(value)
            raise RegisterError(name, f"{shown} is no unsigned integer of {8 * register.size} bits")
        if self._store.view.readonly:
            raise RegisterError(
                name, "the image is read-only", help="Image.copy() gives a writable one; so does a bytearray"
            )
        writer = _WRITERS.get(register.name.rstrip("0123456789"))
        if writer is not None:
            writer(self._store, _LEGACY_INDEX.get(register.name, 0), value)
            return
        data = value.to_bytes(register.size, "little")
        for part in register.parts:
            self._store.write(part.component, part.offset, data[: part.size])
            data = data[part.size :]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        register = REGISTERS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
        return register is not None and register.held_by(self._store.layout)

    @overload
    def get(self, key: str, default: None = None, /) -> int | None: ...
    @overload
    def get(self, key: str, default: T, /) -> int | T: ...
    def get(self, key: str, default: T | None = None, /) -> int | T | None:
        """Return a register's value, or ``default`` where this image has no such register."""
        return self[key] if key in self else default  # noqa: SIM401 - this is what get means

    def names(self, *, widest: bool = False) -> tuple[str, ...]:
        """Return the names of the registers of which the layout holds every part, x87 first.

        With ``widest``, those alone that together state everything once: zmm3 but not ymm3, xmm3 and zmm3h.
        """
        return (widest_names if widest else held_names)(self._store.layout)

    def size_of(self, name: str) -> int:
        """Return a register's size in bytes: 10 for st0, 64 for zmm0, 1024 for tmm0."""
        return self._held(name).size

    def lanes(self, name: str, lane_type: str) -> tuple[int | float, ...]:
        """Return a register as lanes, lowest first; types are f16 bf16 f32 f64, i8 to i64 and u8 to u64.

        Raises RegisterError for an unknown type and where lanes of it do not fill the register.
        """
        register = self._held(name)
        try:
            return lane.split(self._value(register), register.size, lane_type)
        except NumberError as error:
            raise RegisterError(name, str(error), help=error.help) from error

    def set_lanes(self, name: str, lane_type: str, values: Sequence[int | float]) -> None:
        """Write a register by lanes, lowest first; floats are rounded to nearest, ties to even.

        Too large a float becomes an infinity, a NaN keeps its upper payload. Raises RegisterError as
        ``lanes`` does, for a wrong number of lanes and for integers out of range.
        """
        register = self._held(name)
        try:
            bits = lane.join(values, register.size, lane_type)
        except NumberError as error:
            raise RegisterError(name, str(error), help=error.help) from error
        self[name] = bits

    def st(self, index: int) -> Float80:
        """Return ST(index), index 0..7, as a value."""
        return Float80(self[f"st{index}"])

    @property
    def mxcsr(self) -> Mxcsr:
        """MXCSR with its fields."""
        return Mxcsr(self["mxcsr"])

    @property
    def control_word(self) -> ControlWord:
        """FCW with its fields."""
        return ControlWord(self["fctrl"])

    @property
    def status_word(self) -> StatusWord:
        """FSW with its fields, as stored: a restore would recompute ES and B."""
        return StatusWord(self["fstat"])

    def in_use(self, *, exact: bool = False) -> dict[str, int]:
        """Return the widest registers whose canonical value is not initial, with that value, x87 first."""
        values = {name: self.canonical(name, exact=exact) for name in self.names(widest=True)}
        return {name: value for name, value in values.items() if value != initial_value(name)}

    def canonical(self, name: str, *, exact: bool = False) -> int:
        """Return the value that comparisons use; a register that the layout has no room for is initial.

        ``fstat`` comes with ES and B recomputed, ``fctrl`` with its reserved bits as they read back. Unless
        ``exact`` is set ``fop``, ``fip`` and ``fdp`` are 0 while no unmasked x87 exception is pending.
        """
        register = register_named(name)
        value = self._value(register)
        if register.parts[0].component != Component.X87:
            return value
        control, status = self._bare("fctrl"), self._bare("fstat")
        if register.name == "fstat":
            return int(StatusWord(value).recomputed(ControlWord(control)))
        if register.name == "fctrl":
            return int(ControlWord(value).normalised())
        if register.name in _POINTERS and not (exact or pointers_count(control, status)):
            return 0
        return value

    def _bare(self, name: str) -> int:
        return self._value(REGISTERS[name])

    def _value(self, register: Register) -> int:
        if register.view:
            return x87.read_view(self._store, register.name)
        parts = (self._store.read(part.component, part.offset, part.size) for part in register.parts)
        return int.from_bytes(b"".join(parts), "little")

    def _held(self, name: str) -> Register:
        register = register_named(name)
        if not register.held_by(self._store.layout):
            missing = {
                Component.SSE if part.component == MXCSR_BLOCK else part.component
                for part in register.parts
                if not part.held_by(self._store.layout)
            }
            raise RegisterError(
                name,
                f"this {self._store.layout.format.value} layout has no room for"
                f" {mask_text(sum(1 << component for component in missing))}",
                help=f"the layout holds {mask_text(self._store.layout.mask)}",
            )
        return register


def initial_value(name: str) -> int:
    """Return a register's value while its components are in their initial configuration."""
    register = register_named(name)
    if register.name == "ftag":
        return 0xFFFF
    parts = (initial_bytes(part.component, part.offset, part.size) for part in register.parts)
    return int.from_bytes(b"".join(parts), "little")


_WRITERS: Final[Mapping[str, Callable[[ComponentStore, int, int], None]]] = {
    "st": x87.write_st,
    "mm": x87.write_mm,
    "ftag": x87.write_tag,
}
