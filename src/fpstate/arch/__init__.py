"""Facts of the architecture: components, processors, layouts. Standard library only."""

from fpstate.arch.component import COMPONENTS, Component, ComponentInfo, Field, mask_of, xcr0_problem
from fpstate.arch.consistency import Contradiction
from fpstate.arch.cpu import Cpu, Geometry
from fpstate.arch.layout import Format, Layout, Place

__all__ = [
    "COMPONENTS",
    "Component",
    "ComponentInfo",
    "Contradiction",
    "Cpu",
    "Field",
    "Format",
    "Geometry",
    "Layout",
    "Place",
    "mask_of",
    "xcr0_problem",
]
