"""What a state shows of its thread's right to TILEDATA, which Linux gives on request and with the first use.

A thread's buffer has room for TILEDATA from its first tile instruction on; signal frames grow then, and not with the
permission alone. NT_X86_XSTATE always has the room and shows nothing but use. No process can ask for another's
permission (``arch_prctl`` knows the caller's alone).

Sources: Linux ``__xfd_enable_feature`` and ``fpstate_realloc`` in ``arch/x86/kernel/fpu/xstate.c``; frames and regsets
recorded on Emerald Rapids (tests/data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import COMPACTED_BIT, COMPONENTS, MIN_SIZE, USER_DYNAMIC, Component
from fpstate.image.subject import FRAME, MAGIC1, SOFTWARE_AT, XCOMP_BV_AT, XSTATE_BV_AT, Frame
from fpstate.source.sigframe import I386_HEADER_SIZE


@dataclass(frozen=True, slots=True)
class TileUse:
    """``components`` that the thread had been given and used; ``known`` is False where that is an assumption."""

    components: int
    known: bool
    reason: str


_ROOM: Final = MIN_SIZE + COMPONENTS[Component.TILEDATA].size
"""No image with TILEDATA is shorter than this many bytes."""
_UNKNOWN: Final = (
    "not in use; whether its process has the permission does not show, and is taken not to be so"
)


def of_thread(xstate_bv: int) -> TileUse:
    """Tell from the register set of a live thread, or of one in a core."""
    used = xstate_bv & ~COMPACTED_BIT & USER_DYNAMIC
    return TileUse(used, True, "in use, so it was permitted") if used else TileUse(0, False, _UNKNOWN)


def of_bytes(data: bytes) -> TileUse:
    """Tell from raw bytes: a signal frame says what its thread's buffer had, other images are nobody's."""
    frame = _frame(data)
    if frame is not None:
        used, size = frame.xfeatures & USER_DYNAMIC, frame.xstate_size
        if used and size < _ROOM:  # what lies behind those bytes is loaded if it is so, and harmless if not
            doubt = (
                f"in the frame's xfeatures, and its {size} bytes have no room for it: it is taken to be used"
            )
            return TileUse(used, False, doubt)
        use = "had used tiles" if used else "had not used any tile"
        return TileUse(used, True, f"the frame has {size} bytes for {frame.xfeatures:#x}: its thread {use}")
    stated = _word(data, XSTATE_BV_AT) | _word(data, XCOMP_BV_AT)
    doubt = "an image does not say whether whoever loads it has the permission, which is taken not to be so"
    return TileUse(0, False, doubt if stated & USER_DYNAMIC else "")


def _frame(data: bytes) -> Frame | None:
    """Return the software bytes of a frame, 64-bit or i386; None for bytes that are none."""
    for start in (SOFTWARE_AT, I386_HEADER_SIZE + SOFTWARE_AT):
        if len(data) >= start + FRAME.size:
            frame = Frame(*FRAME.unpack_from(data, start))
            if frame.magic1 == MAGIC1 and frame.xstate_size <= frame.extended_size:
                return frame
    return None


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")
