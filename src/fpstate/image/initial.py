"""The initial configuration of each component: what a register is while its component is absent.

Source: SDM Vol.1 13.6. All components start as zeros but x87 (FCW), HDC and HWP; MXCSR counts apart from SSE.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import Component
from fpstate.image.control import FCW_INIT, MXCSR_INIT

MXCSR_BLOCK: Final = -1
"""Stands for bytes 24-31, MXCSR and MXCSR_MASK: part of SSE, but saved and restored by rules of their own."""

_LEADING: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        MXCSR_BLOCK: MXCSR_INIT.to_bytes(4, "little"),
        Component.X87: FCW_INIT.to_bytes(2, "little"),
        Component.HDC: (1).to_bytes(8, "little"),
        Component.HWP: (0x8000FF01).to_bytes(8, "little"),
    }
)


def initial_bytes(component: int, offset: int, size: int) -> bytes:
    """Return ``size`` bytes from ``offset`` on of a component in its initial configuration."""
    return _LEADING.get(component, b"")[offset : offset + size].ljust(size, b"\0")
