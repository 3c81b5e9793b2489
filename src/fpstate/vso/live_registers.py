"""One processor's registers, as those who switch contexts use them: saved, restored, held back by XFD."""

from __future__ import annotations

from typing import Protocol

from fpstate.image import Image


class LiveRegisters(Protocol):
    """What an engine, or a test, puts behind a switch. Masks are component bitmaps.

    ``xfd`` is IA32_XFD (SDM vol. 1, 13.14); it reads as 0, and ignores writes, where the processor has none.
    """

    xfd: int

    @property
    def in_use(self) -> int:
        """The components that are not in their initial configuration (XINUSE), supervisor ones too."""

    def save(self, rfbm: int) -> Image:
        """Return the registers of the components in ``rfbm``; they stay what they are."""

    def restore(self, image: Image, rfbm: int) -> None:
        """Load the components in ``rfbm``; what the image lacks becomes initial. Raises RestoreFault."""
