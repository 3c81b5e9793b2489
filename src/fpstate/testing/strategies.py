"""Hypothesis strategies for processors, layouts and images. Needs Hypothesis; nothing else here does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from fpstate.arch.component import MIN_SIZE, components_in, mask_of
from fpstate.arch.cpu import Cpu, Geometry
from fpstate.arch.layout import Format, Layout
from fpstate.errors import UnsupportedHere
from fpstate.image import Image, initial_value
from fpstate.testing.build import MXCSR_MASK, build_cpu, build_image, build_layout, random_image

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise UnsupportedHere(
        "strategies (Hypothesis is not installed)", help="pip install hypothesis; the builders do without it"
    ) from error

_LARGEST_COMPONENT = 9000


def cpus(*, invented: bool = False) -> st.SearchStrategy[Cpu]:
    """Processors of the catalog; with ``invented``, also such as ``invented_cpus`` makes."""
    recorded = st.sampled_from([Cpu.catalog(name) for name in Cpu.catalog_names()])
    return recorded | invented_cpus() if invented else recorded


@st.composite
def invented_cpus(draw: st.DrawFn) -> Cpu:
    """Processors whose components have any number, size, order and alignment, user and supervisor ones."""
    numbers = draw(st.permutations(sorted(draw(st.sets(st.integers(2, 62), max_size=12)))))
    geometry, offset = {}, MIN_SIZE
    for number in numbers:
        offset += draw(st.integers(0, 300))
        size, supervisor = draw(st.integers(1, _LARGEST_COMPONENT)), draw(st.booleans())
        geometry[number] = Geometry(size, 0 if supervisor else offset, supervisor, draw(st.booleans()), False)
        offset += 0 if supervisor else size
    return build_cpu(geometry)


def masks(supported: int) -> st.SearchStrategy[int]:
    """Bitmaps of some of these components, which need not be a legal XCR0."""
    return st.sets(st.sampled_from(list(components_in(supported)))).map(lambda chosen: mask_of(*chosen))


@st.composite
def layouts(
    draw: st.DrawFn,
    cpu: st.SearchStrategy[Cpu] | Cpu | None = None,
    formats: Collection[Format] = tuple(Format),
    *,
    whole: bool = False,
) -> Layout:
    """Layouts of some of a processor's components, x87 and SSE always among them.

    ``whole``: of all that CPUID enumerates and the format can hold.
    """
    chosen = cpu if isinstance(cpu, Cpu) else draw(cpus() if cpu is None else cpu)
    format = draw(st.sampled_from(list(formats)))
    supported = chosen.xcr0 if format is Format.STANDARD else chosen.xcr0 | chosen.xss
    mask = supported if whole else draw(masks(supported)) | mask_of(0, 1)
    return build_layout(chosen, format, mask)


@st.composite
def register_values(draw: st.DrawFn, layout: Layout, max_size: int = 12) -> Mapping[str, int]:
    """Values for some of the registers that a layout holds: random, or what they are initially."""
    registers = Image.initial(layout).registers
    names = draw(st.lists(st.sampled_from(registers.names()), max_size=max_size, unique=True))
    return {name: draw(_value(name, registers.size_of(name))) for name in names}


@st.composite
def images(
    draw: st.DrawFn, layout: st.SearchStrategy[Layout] | Layout | None = None, mxcsr_mask: int = MXCSR_MASK
) -> Image:
    """Legal, writable images: random registers, some components absent, leftovers wherever no state is.

    They shrink towards the initial state without leftovers.
    """
    chosen = layout if isinstance(layout, Layout) else draw(layouts() if layout is None else layout)
    leftovers = draw(st.sampled_from((b"", b"\xa5", b"\x01\x02\x03\x04\x05\x06\x07")))
    if draw(st.booleans()):
        present, seed = draw(masks(chosen.mask)), draw(st.integers(0, (1 << 32) - 1))
        return random_image(chosen, seed, present=present, mxcsr_mask=mxcsr_mask, leftovers=leftovers)
    values = dict(draw(register_values(chosen)))
    values.pop("mxcsr_mask", None)
    if "mxcsr" in values:
        values["mxcsr"] &= mxcsr_mask
    return build_image(chosen, values, present=draw(masks(chosen.mask)), leftovers=leftovers)


def _value(name: str, size: int) -> st.SearchStrategy[int]:
    bits = st.binary(min_size=size, max_size=size).map(lambda data: int.from_bytes(data, "little"))
    return cast("st.SearchStrategy[int]", bits | st.just(initial_value(name)))
