"""What reading and writing x87 and MMX registers involves beyond their bytes: tags, TOP and the slot order.

Slots hold the register stack in stack order, tags go by physical register, and MMi *is* physical register i
(SDM Vol.1 8.1.2, 9.2.1 and 10.5.1), so that an MMX name finds its slot by way of FSW.TOP.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import Component
from fpstate.image.control import StatusWord
from fpstate.image.store import ComponentStore
from fpstate.image.tag import abridged_tag, full_tag, physical_register, slot_of

_FSW: Final = (2, 2)
_FTW: Final = (4, 1)
_SLOTS: Final = range(32, 160, 16)
_SLOT_SIZE: Final = 16
_VALUE_SIZE: Final = 10
_MMX_EXPONENT: Final = 0xFFFF << 64


def read_view(store: ComponentStore, name: str) -> int:
    """Return a register that is another form of what is stored: ``ftag`` or ``mm0`` to ``mm7``."""
    return read_tag(store) if name == "ftag" else read_mm(store, int(name.removeprefix("mm")))


def read_tag(store: ComponentStore) -> int:
    """Return the full tag word, made from the abridged one, TOP and the contents of the registers."""
    slots = [int.from_bytes(_field(store, offset, _VALUE_SIZE), "little") for offset in _SLOTS]
    return full_tag(_field(store, *_FTW)[0], _status(store).top, slots)


def write_tag(store: ComponentStore, _index: int, full: int) -> None:
    """Store a full tag word as the abridged one: valid, zero and special become one, as FLDENV has it."""
    _write(store, _FTW[0], bytes([abridged_tag(full)]))


def write_st(store: ComponentStore, index: int, value: int) -> None:
    """Store an 80-bit value as ST(index) and mark its register as not empty."""
    tags = _field(store, *_FTW)[0] | 1 << physical_register(index, _status(store).top)
    _write(store, _SLOTS[index], value.to_bytes(_SLOT_SIZE, "little"))
    _write(store, _FTW[0], bytes([tags]))


def read_mm(store: ComponentStore, index: int) -> int:
    """Return MM(index): the low 64 bits of a physical register."""
    slot = _SLOTS[slot_of(index, _status(store).top)]
    return int.from_bytes(_field(store, slot, 8), "little")


def write_mm(store: ComponentStore, index: int, value: int) -> None:
    """Store MM(index) as an MMX instruction does: exponent all ones, TOP 0, every tag valid.

    The other physical registers keep their contents, so their slots move to where TOP = 0 puts them.
    """
    status = _status(store)
    slots = [_field(store, offset, _SLOT_SIZE) for offset in _SLOTS]
    physical = [slots[slot_of(number, status.top)] for number in range(len(slots))]
    physical[index] = (_MMX_EXPONENT | value).to_bytes(_SLOT_SIZE, "little")
    _write(store, _FSW[0], int(status.replace(top=0)).to_bytes(2, "little"))
    _write(store, _FTW[0], b"\xff")
    _write(store, _SLOTS[0], b"".join(physical))


def _status(store: ComponentStore) -> StatusWord:
    return StatusWord(int.from_bytes(_field(store, *_FSW), "little"))


def _field(store: ComponentStore, offset: int, size: int) -> bytes:
    return store.read(Component.X87, offset, size)


def _write(store: ComponentStore, offset: int, data: bytes) -> None:
    store.write(Component.X87, offset, data)
