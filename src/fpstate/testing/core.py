"""A small writer of ELF cores: as Linux, FreeBSD and NetBSD write them, and as nobody should.

For tests on machines that lack a processor, a debugger or another operating system. The cores have notes and
no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import LEGACY_PLACES
from fpstate.arch.layout import Layout
from fpstate.image import Image
from fpstate.source.thread import Machine
from fpstate.testing.build import MXCSR_MASK

_MACHINES: Final[dict[Machine, tuple[int, int]]] = {"x86-64": (2, 62), "x32": (1, 62), "i386": (1, 3)}
_PRSTATUS: Final[dict[Machine, tuple[int, int]]] = {"x86-64": (336, 32), "x32": (296, 24), "i386": (144, 24)}
_XCR0_OFFSET: Final = 464
_MXCSR_MASK_OFFSET: Final = 28


@dataclass(frozen=True, slots=True)
class CoreNote:
    """One note to write; ``claims`` states another size of the description than it has."""

    name: str
    type: int
    description: bytes
    claims: int | None = None

    def to_bytes(self) -> bytes:
        """Return the note with its padding."""
        name = self.name.encode() + b"\0"
        size = len(self.description) if self.claims is None else self.claims
        header = struct.pack("<III", len(name), size, self.type)
        return header + _padded(name) + _padded(self.description)


def write_core(notes: Iterable[CoreNote], machine: Machine = "x86-64", *, padding: int = 0) -> bytes:
    """Return an ELF core with these notes in one segment, ``padding`` bytes of other things before it."""
    bits, number = _MACHINES[machine]
    body = b"".join(note.to_bytes() for note in notes)
    header_size, entry_size = (64, 56) if bits == 2 else (52, 32)
    start = header_size + entry_size + padding
    ident = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9)
    tail = (0, header_size, entry_size, 1, 0, 0, 0)
    if bits == 2:
        header = struct.pack("<HHIQQQIHHHHHH", 4, number, 1, 0, header_size, 0, *tail)
        segment = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(body), 0, 4)
    else:
        header = struct.pack("<HHIIIIIHHHHHH", 4, number, 1, 0, header_size, 0, *tail)
        segment = struct.pack("<IIIIIIII", 4, start, 0, 0, len(body), 0, 0, 4)
    return ident + header + segment + bytes(padding) + body


def linux_notes(
    states: Sequence[tuple[int, bytes]],
    machine: Machine = "x86-64",
    *,
    layout: Layout | None = None,
    hwcap: int | None = None,
) -> list[CoreNote]:
    """Return the notes of threads by number and register set, with the layout and AT_HWCAP where they are given."""
    notes: list[CoreNote] = []
    size, tid_offset = _PRSTATUS[machine]
    for index, (tid, register_set) in enumerate(states):
        status = bytearray(size)
        struct.pack_into("<I", status, tid_offset, tid)
        notes.append(CoreNote("CORE", 1, bytes(status)))
        if index == 0 and hwcap is not None:
            notes.append(
                CoreNote(
                    "CORE", 6, struct.pack("<6Q" if machine == "x86-64" else "<6I", 6, 4096, 16, hwcap, 0, 0)
                )
            )
        notes.append(CoreNote("LINUX", 0x202, register_set))
    if layout is not None:
        notes.append(CoreNote("LINUX", 0x205, layout_note(layout)))
    return notes


def layout_note(layout: Layout) -> bytes:
    """Return NT_X86_XSAVE_LAYOUT for a layout: the components from 2 on, by number."""
    places = sorted(layout.places, key=lambda place: place.component)
    records = (
        struct.pack("<IIII", place.component, place.size, place.offset, 0)
        for place in places
        if place.component not in LEGACY_PLACES
    )
    return b"".join(records)


def register_set(image: Image, *, xcr0: int | None = None, mxcsr_mask: int = MXCSR_MASK) -> bytes:
    """Return an image as NT_X86_XSTATE: with XCR0, by default the layout's mask, at byte 464, and an MXCSR_MASK.

    Linux states both always. gdb sets XSTATE_BV to all of XCR0, and MXCSR_MASK to 0.
    """
    data = bytearray(image.to_bytes())
    struct.pack_into("<I", data, _MXCSR_MASK_OFFSET, mxcsr_mask)
    struct.pack_into("<Q", data, _XCR0_OFFSET, image.layout.mask if xcr0 is None else xcr0)
    return bytes(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
