"""Contexts for runtimes that switch often: full register states that the native core keeps, and which core does it.

A ``Context`` belongs to no manager and knows no permission; ``Manager.switch`` goes from VSO to VSO.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.image import Image
from fpstate.image.convert import convert

try:
    from fpstate._core import Context, Order, switch
except ImportError:
    from fpstate.vso.absent import Context, Order, switch  # type: ignore[assignment]

__all__ = ["CLASSES", "Context", "CoreChoice", "Order", "core_choice", "load", "read", "switch"]

_VECTORS: Final = mask_of(
    *(Component.SSE, Component.AVX, Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM)
)
CLASSES: Final = {
    "typical": mask_of(Component.SSE, Component.OPMASK, Component.HI16_ZMM),
    "all but x87": _VECTORS,
    "everything": LEGACY | _VECTORS,
}
"""What is in use where cores are compared (``classes`` in ``_core/choice.c``); typical is that of a glibc process."""


@dataclass(frozen=True, slots=True)
class CoreChoice:
    """Which core switches here, and why.

    ``pairs`` of states were tried in the self-test, ``mismatches`` came out wrong. ``ratios`` is the fast core's time
    by the portable one's for each of ``CLASSES``, where contexts that used everything ran before; None: not measured.
    ``settled`` are the components that were in use then: where in-use bits count writes (Intel), those that the fast
    core ends without XRSTOR stay in use, and are paid for.
    """

    name: str
    reason: str
    pairs: int
    mismatches: int
    ratios: tuple[float, float, float] | None
    settled: tuple[int, int, int] | None


def core_choice() -> CoreChoice:
    """Choose the core, if this is the first use, and say which it is.

    Raises SettingError where FPSTATE_CORE holds what it cannot, UnsupportedHere where it asks for the fast core and
    there is none here; ImportError where the native core is not built.
    """
    from fpstate import _core

    found = _core.core_choice()
    typical, all_but_x87, everything = (value / 1000 for value in found["permille"])
    return CoreChoice(
        name=found["core"],
        reason=found["reason"],
        pairs=found["pairs"],
        mismatches=found["mismatches"],
        ratios=(typical, all_but_x87, everything) if typical else None,
        settled=found["settled"] if typical else None,
    )


def load(context: Context, image: Image, *, drop: Iterable[int | str] = ()) -> None:
    """Let a context hold an image's registers, whatever layout they come in.

    ``drop`` names what may be lost, such as PKRU, which no context holds. Raises ConversionLoss where something else
    would be lost, ImageError where XRSTOR would refuse the image.
    """
    target = convert(image, layout(), drop=drop, mxcsr_mask=Cpu.host().mxcsr_mask)
    context.load(target.image.to_bytes())


def read(context: Context) -> Image:
    """Return a context's state: a copy, with its layout."""
    return Image(context.image()[: layout().size], layout(), "context")


def layout() -> Layout:
    """Return how contexts are laid out here: everything that the core manages, compacted where there is XSAVEC."""
    from fpstate import _core

    found = _core.features()
    return (Layout.compacted if found["xsavec"] else Layout.standard)(Cpu.host(), found["managed_mask"])
