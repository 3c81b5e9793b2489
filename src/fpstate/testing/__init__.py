"""For tests of your own: images and layouts of any processor, by value, at random, and as strategies.

The builders need nothing else. The strategies need Hypothesis, and raise UnsupportedHere when they are asked
for without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fpstate.testing.build import MXCSR_MASK, build_cpu, build_image, build_layout, random_image
from fpstate.testing.case import Case, as_frame, clean_case
from fpstate.testing.chance import mangle
from fpstate.testing.mutate import MUTATORS, broken_case

if TYPE_CHECKING:
    from fpstate.testing.strategies import cpus, images, invented_cpus, layouts, masks, register_values

_STRATEGIES = ("cpus", "images", "invented_cpus", "layouts", "masks", "register_values")

__all__ = [
    "MUTATORS",
    "MXCSR_MASK",
    "Case",
    "as_frame",
    "broken_case",
    "build_cpu",
    "build_image",
    "build_layout",
    "clean_case",
    "cpus",
    "images",
    "invented_cpus",
    "layouts",
    "mangle",
    "masks",
    "random_image",
    "register_values",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _STRATEGIES:
        return getattr(importlib.import_module("fpstate.testing.strategies"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
