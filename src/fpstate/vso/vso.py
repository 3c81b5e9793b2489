"""The VSO: the owner of one context's floating-point and vector state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpstate.arch.component import LEGACY, USER_SUPPORTED
from fpstate.errors import VsoError
from fpstate.image import Image
from fpstate.vso.config import FpuConfig
from fpstate.vso.permission import Kind

if TYPE_CHECKING:
    from fpstate.arch.layout import Layout
    from fpstate.vso.pool import Buffer

XSTATE_BV = slice(512, 520)
"""Where an image's header says which components it holds (SDM vol. 1, 13.4.2)."""


def room_for(in_use: int) -> int:
    """Return the components that a buffer for ``in_use`` holds: none, or those and the legacy region."""
    return in_use | LEGACY if in_use else 0


class Vso:
    """One context's state: a pointer to a buffer of just the components that it uses, or to none.

    Made by ``Manager.create`` and changed by its manager alone. The names are those of Linux's ``struct fpstate``
    where they mean the same.
    """

    __slots__ = ("_layout", "alive", "buffer", "config", "kind", "permitted")

    def __init__(self, config: FpuConfig, kind: Kind, permitted: int) -> None:
        self.config = config
        self.kind = kind
        self.permitted = permitted
        self.buffer: Buffer | None = None
        self._layout: Layout | None = None
        self.alive = True

    @property
    def is_guest(self) -> bool:
        """Whether this is a vCPU's guest state, with the guest's defaults and permission."""
        return self.kind is Kind.GUEST

    @property
    def layout(self) -> Layout:
        """How the buffer is laid out; without a buffer, the smallest layout there is."""
        return self._layout or self.config.kernel_layout(LEGACY)

    @property
    def xfeatures(self) -> int:
        """The components that the buffer has room for; 0 without a buffer."""
        return self._layout.mask if self._layout else 0

    @property
    def user_xfeatures(self) -> int:
        """The user components among them."""
        return self.xfeatures & USER_SUPPORTED

    @property
    def size(self) -> int:
        """Bytes of the image in the buffer; 0 without one. Linux: the most that the task may come to need."""
        return self._layout.size if self._layout else 0

    @property
    def user_size(self) -> int:
        """Bytes of a standard-format image of the same, as a signal frame or ptrace would carry it."""
        return self.config.user_size(self.user_xfeatures) if self._layout else 0

    @property
    def max_size(self) -> int:
        """Bytes of an image of everything that is permitted: what a static blob would hold."""
        return self.config.kernel_size(self.permitted)

    @property
    def xfd(self) -> int:
        """Dynamic components that the buffer has no room for: using one has to be noticed first (IA32_XFD)."""
        return self.config.init_xfd & ~self.xfeatures

    @property
    def in_use(self) -> int:
        """The components that the saved state holds (XSTATE_BV)."""
        return int.from_bytes(self.buffer.view[XSTATE_BV], "little") if self.buffer else 0

    def image(self) -> Image:
        """Return the saved state, a copy, with its layout. Raises VsoError after the VSO was freed."""
        self.check_alive()
        if not self.buffer:
            return Image.initial(self.layout, "vso")
        return Image(bytes(self.buffer.view), self.layout, "vso")

    def check_alive(self) -> None:
        """Raise VsoError where the VSO was freed."""
        if not self.alive:
            raise VsoError("this VSO was freed", help="create another with Manager.create()")

    def settle(self, buffer: Buffer | None, layout: Layout | None) -> Buffer | None:
        """Let the state lie in another buffer; returns the earlier one. For managers."""
        earlier, self.buffer, self._layout = self.buffer, buffer, layout
        return earlier
