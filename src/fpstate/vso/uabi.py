"""The form in which states leave the kernel and come in: the standard format, copied component by component.

Sources: Linux ``__copy_xstate_to_uabi_buf`` and ``copy_uabi_to_xstate`` in ``arch/x86/kernel/fpu/xstate.c``; these
are behind ptrace, core dumps and KVM.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import LEGACY, USER_SUPPORTED, Component, components_in, mask_of
from fpstate.arch.layout import Layout
from fpstate.image import Image
from fpstate.image.control import FCW_INIT, MXCSR_INIT
from fpstate.image.convert import convert
from fpstate.image.move import LEGACY_PIECES, moves
from fpstate.image.subject import MXCSR_AT, SOFTWARE_AT, XSTATE_BV_AT
from fpstate.vso.config import FpuConfig

_PKRU: Final = mask_of(Component.PKRU)
_MXCSR_CARRIERS: Final = mask_of(Component.SSE, Component.AVX)
_X87: Final = LEGACY_PIECES[Component.X87]
_XMM: Final = LEGACY_PIECES[Component.SSE][1]


def export_uabi(image: Image, config: FpuConfig, features: int, pkru: int) -> bytes:
    """Return a state in the standard format of the user components in ``features``.

    ``image`` is a kernel image without PKRU, whose value is ``pkru``: it is stated where ``features`` has it, 0 too,
    for an import keeps its own value of what is absent. What else is absent is zeros, but for FCW, MXCSR and
    MXCSR_MASK; the software bytes have XCR0.
    """
    layout = Layout.standard(config.cpu, features & USER_SUPPORTED)
    stated = image.xstate_bv & layout.mask & ~_PKRU
    out, source = bytearray(layout.size), image.store.view
    out[0:2] = FCW_INIT.to_bytes(2, "little")
    if stated & mask_of(Component.X87):
        _copy(out, source, _X87)
    mxcsr = MXCSR_INIT.to_bytes(4, "little")
    out[MXCSR_AT : MXCSR_AT + 4] = source[MXCSR_AT : MXCSR_AT + 4] if stated & _MXCSR_CARRIERS else mxcsr
    out[MXCSR_AT + 4 : MXCSR_AT + 8] = config.cpu.mxcsr_mask.to_bytes(4, "little")
    if stated & mask_of(Component.SSE):
        _copy(out, source, (_XMM,))
    for at, to, size in moves(image.layout, layout, stated & ~LEGACY):
        out[to : to + size] = source[at : at + size]
    if layout.mask & _PKRU:
        place, stated = layout.offset(Component.PKRU), stated | _PKRU
        out[place : place + 4] = pkru.to_bytes(4, "little")
    out[SOFTWARE_AT : SOFTWARE_AT + 8] = config.user_max.features.to_bytes(8, "little")
    out[XSTATE_BV_AT : XSTATE_BV_AT + 8] = stated.to_bytes(8, "little")
    return bytes(out)


def merge_uabi(incoming: Image, kept: Image, target: Layout) -> Image:
    """Return a kernel image with the user components of one state and the supervisor components of another.

    PKRU stays behind. An MXCSR that only AVX carries comes with SSE, without which the compacted format loses it.
    """
    merged = convert(incoming, target, drop=(Component.PKRU,)).image
    supervisor = kept.xstate_bv & target.mask & ~USER_SUPPORTED
    for component in components_in(supervisor):
        merged.store.activate(component)
    for at, to, size in moves(kept.layout, target, supervisor):
        merged.store.view[to : to + size] = kept.store.view[at : at + size]
    return merged


def _copy(out: bytearray, source: memoryview, pieces: tuple[tuple[int, int], ...]) -> None:
    for start, size in pieces:
        out[start : start + size] = source[start : start + size]
