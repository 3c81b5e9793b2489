"""What every guest has above itself: descriptor tables, a handler for each exception, and the exit routine.

A guest runs at CPL 3. An exception enters its handler at CPL 0, which writes to a port: the host then reads from the
guest's exception stack what happened. Handlers are two instructions that KVM can also emulate.
The guest sees two pages of this, which it cannot write: the one that gs points to, and the exit routine.
"""

from __future__ import annotations

import struct
from typing import Final

from fpstate.engine.kvm.abi import SEGMENT, SEGMENTS, TABLE, TABLES
from fpstate.engine.kvm.arena import Piece
from fpstate.engine.kvm.paging import NO_EXECUTE, USER, WRITABLE, Mapping
from fpstate.engine.memory import PAGE_SIZE
from fpstate.program.block import EXIT_SLOT, OUT_INSTRUCTION, PORT

TABLES_PAGE: Final = 0x40000
IDT_PAGE: Final = 0x41000
HANDLERS_PAGE: Final = 0x42000
GS_PAGE: Final = 0x43000
EXIT_ROUTINE: Final = 0x44000
XINUSE_ROUTINE: Final = EXIT_ROUTINE + 0x10
"""Leaves with XINUSE in EAX; the engine enters it after a guest, and it does a guest no harm."""
STACK_PAGE: Final = 0x46000
"""The exception stack: each guest has a page of its own here, which it cannot reach."""
STACK_TOP: Final = STACK_PAGE + PAGE_SIZE

REPORT_PORT: Final = 0xF6
"""What handlers write to; guests may write to PORT alone (I/O permission bitmap, SDM vol. 1, 19.5.2)."""
WITH_ERROR_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
"""Vectors that push an error code (SDM vol. 3, table 6-1; APM vol. 2, table 8-1)."""

KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28
_DESCRIPTORS = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
_VECTORS = 256
_GATE_SIZE, _HANDLER_SIZE = 16, 8
_HANDLER = bytes((0xE6, REPORT_PORT)) + b"\xf4" * (_HANDLER_SIZE - 2)
"""out %al, $REPORT_PORT; hlt ..."""
_BREAKPOINT, _OVERFLOW = 3, 4
"""What programs may raise by INT3 and INTO: their gates have DPL 3."""

_TSS = TABLES_PAGE + 0x100
_TSS_SIZE = 104
_BITMAP_SIZE = 256 // 8 + 1
_TSS_LIMIT = _TSS_SIZE + _BITMAP_SIZE - 1
_RSP0, _BITMAP_BASE = 4, 102
"""Offsets in the 64-bit TSS (SDM vol. 3, 8.7)."""

EXIT_CODE: Final = (OUT_INSTRUCTION + b"\xc3").ljust(XINUSE_ROUTINE - EXIT_ROUTINE, b"\0") + (
    b"\xb9\x01\0\0\0\x0f\x01\xd0" + OUT_INSTRUCTION
)
"""The exit routine; behind it mov $1, %ecx; xgetbv; out %eax, $PORT."""
SHARED_SIZE: Final = EXIT_ROUTINE + PAGE_SIZE - TABLES_PAGE


def shared_pages() -> bytes:
    """Return the pages from TABLES_PAGE to the exit routine, the same for all guests."""
    pages = (_descriptor_tables(), _gates(), _HANDLER * _VECTORS, _gs_page(), EXIT_CODE)
    return b"".join(page.ljust(PAGE_SIZE, b"\0") for page in pages)


def mappings(shared: Piece, stack: int) -> tuple[Mapping, ...]:
    """Return how a guest has these pages, and its exception stack at the physical address ``stack``."""
    start = shared.guest_address - TABLES_PAGE
    return (
        Mapping(TABLES_PAGE, start + TABLES_PAGE, 2 * PAGE_SIZE, NO_EXECUTE),
        Mapping(HANDLERS_PAGE, start + HANDLERS_PAGE, PAGE_SIZE, 0),
        Mapping(GS_PAGE, start + GS_PAGE, PAGE_SIZE, USER | NO_EXECUTE),
        Mapping(EXIT_ROUTINE, start + EXIT_ROUTINE, PAGE_SIZE, USER),
        Mapping(STACK_PAGE, stack, PAGE_SIZE, WRITABLE | NO_EXECUTE),
    )


def vector_at(rip: int) -> int | None:
    """Return the vector whose handler holds an address."""
    number = (rip - HANDLERS_PAGE) // _HANDLER_SIZE
    return number if 0 <= number < _VECTORS else None


def user_segment(name: str) -> bytes:
    """Return struct kvm_segment as a guest starts with it."""
    match name:
        case "cs":
            return _segment(USER_CODE, kind=0xB, long=1, big=0)
        case "gs":
            return _segment(USER_DATA, kind=0x3, long=0, big=1, base=GS_PAGE)
        case "tr":
            return SEGMENT.pack(_TSS, _TSS_LIMIT, TASK, 0xB, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        case "ldt":
            return SEGMENT.pack(0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0)
        case _:
            return _segment(USER_DATA, kind=0x3, long=0, big=1)


def user_segments() -> bytes:
    """Return all segments, in the order of struct kvm_sregs."""
    return b"".join(map(user_segment, SEGMENTS))


def descriptor_registers() -> bytes:
    """Return GDTR and IDTR, in the order of struct kvm_sregs."""
    places = {
        "gdt": (TABLES_PAGE, 8 * len(_DESCRIPTORS) + 16 - 1),
        "idt": (IDT_PAGE, _VECTORS * _GATE_SIZE - 1),
    }
    return b"".join(TABLE.pack(*places[name]) for name in TABLES)


def _segment(selector: int, *, kind: int, long: int, big: int, base: int = 0) -> bytes:
    return SEGMENT.pack(base, 0xFFFFFFFF, selector, kind, 1, 3, big, 1, long, 1, 0, 0, 0)


def _descriptor_tables() -> bytes:
    low = _TSS_LIMIT | (_TSS & 0xFFFFFF) << 16 | 0x8B << 40 | (_TSS >> 24 & 0xFF) << 56
    table = struct.pack(f"<{len(_DESCRIPTORS) + 2}Q", *_DESCRIPTORS, low, _TSS >> 32)
    return table.ljust(_TSS - TABLES_PAGE, b"\0") + _task_state()


def _task_state() -> bytes:
    state = bytearray(_TSS_SIZE + _BITMAP_SIZE)
    struct.pack_into("<Q", state, _RSP0, STACK_TOP)
    struct.pack_into("<H", state, _BITMAP_BASE, _TSS_SIZE)
    denied = (1 << 8 * _BITMAP_SIZE) - 1 & ~(0xF << PORT)
    state[_TSS_SIZE:] = denied.to_bytes(_BITMAP_SIZE, "little")
    return bytes(state)


def _gates() -> bytes:
    return b"".join(map(_gate, range(_VECTORS)))


def _gate(vector: int) -> bytes:
    handler = HANDLERS_PAGE + vector * _HANDLER_SIZE
    kind = 0xEE if vector in (_BREAKPOINT, _OVERFLOW) else 0x8E
    return struct.pack("<HHBBHII", handler & 0xFFFF, KERNEL_CODE, 0, kind, handler >> 16, 0, 0)


def _gs_page() -> bytes:
    return bytes(EXIT_SLOT) + EXIT_ROUTINE.to_bytes(8, "little")
