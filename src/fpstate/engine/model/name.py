"""Registers by debugger name: the names, values and side effects of ``fpstate.image.registers``."""

from __future__ import annotations

from functools import lru_cache

from fpstate.arch.component import Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.model.contents import LOADED
from fpstate.engine.model.register_file import RegisterFile
from fpstate.image import Image
from fpstate.image.register import register_named

_PRESENT_AT = slice(512, 520)
_MXCSR = slice(24, 28)


@lru_cache(maxsize=2048)
def components_of(name: str) -> int:
    """Return the bitmap of the components that a register lies in; MXCSR counts as SSE."""
    parts = register_named(name).parts
    return mask_of(*(Component.SSE if part.component < 0 else part.component for part in parts))


def read(file: RegisterFile, cpu: Cpu, name: str) -> int:
    """Return a register's value; raises RegisterError for what this processor does not have."""
    return image_of(file, cpu, components_of(name)).registers[name]


def image_of(file: RegisterFile, cpu: Cpu, mask: int) -> Image:
    """Return the registers of these components as a compacted image in which all of them are present."""
    held = mask & (mask_of(*cpu.geometry) | 3) | mask_of(Component.SSE)
    image = Image.initial(_layout(cpu, held))
    view = image.store.view
    for place in image.layout.places:
        value = file.values[place.component]
        view[place.offset : place.end] = value
    view[_MXCSR] = file.mxcsr.to_bytes(4, "little")
    view[_PRESENT_AT] = image.layout.mask.to_bytes(8, "little")
    return image


def take(file: RegisterFile, image: Image) -> None:
    """Make an image's registers the processor's, component by component where they differ."""
    for place in image.layout.places:
        value = bytes(image.store.view[place.offset : place.end])
        convert = LOADED.get(place.component)
        value = convert(value) if convert else value
        if value != file.values[place.component]:
            file.put(place.component, value)
    file.mxcsr = int.from_bytes(image.store.view[_MXCSR], "little")


@lru_cache(maxsize=256)
def _layout(cpu: Cpu, mask: int) -> Layout:
    return Layout.compacted(cpu, mask)
