"""Laws of the model: images go into its registers and come out of them whole, on any processor and in any format."""

from __future__ import annotations

import dataclasses

from hypothesis import assume, given
from hypothesis import strategies as st

from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.arch.component import LEGACY, components_in
from fpstate.engine.model import Behaviour, Processor
from fpstate.image import Image
from fpstate.image.tile import is_loaded
from fpstate.testing.strategies import cpus, images, masks

RECORDED = cpus().filter(lambda cpu: cpu.has("XSAVE"))
MXCSR = slice(24, 28)


def processor_of(cpu: Cpu) -> Processor:
    behaviour = dataclasses.replace(
        Behaviour.of(cpu), fip_bits=64, fdp_bits=64
    )  # images have pointers of any width
    processor = Processor(cpu, behaviour)
    processor.xcr0, processor.xss = cpu.xcr0 | LEGACY, cpu.xss
    return processor


def formats_of(cpu: Cpu) -> list[Format]:
    return list(Format) if cpu.has("XSAVEC") else [Format.STANDARD]


def layout_of(cpu: Cpu, format: Format, mask: int) -> Layout:
    return (Layout.standard if format is Format.STANDARD else Layout.compacted)(cpu, mask)


@st.composite
def loaded(draw: st.DrawFn) -> tuple[Processor, Image]:
    """A processor, and an image that it was given to restore."""
    cpu = draw(RECORDED)
    processor = processor_of(cpu)
    format = draw(st.sampled_from(formats_of(cpu)))
    mask = processor.xcr0 if format is Format.STANDARD else draw(masks(processor.xcr0)) | LEGACY
    image = draw(images(layout_of(cpu, format, mask), cpu.mxcsr_mask))
    if Component.TILECFG in image.layout:
        place = image.layout.place(Component.TILECFG)
        if not is_loaded(
            image.store.view[place.offset : place.end]
        ):  # a restore takes no other configuration
            image.store.view[place.offset : place.end] = b"\1" + bytes(63)
    data = bytearray(image.to_bytes()).ljust(Layout.standard(cpu, processor.xcr0).size, b"\0")
    if format is Format.STANDARD and not image.xstate_bv & 6:
        data[MXCSR] = (0x1F80).to_bytes(4, "little")  # loaded all the same, though the image states none
    processor.xrstor(data)
    return processor, image


def agree(one: Image, other: Image) -> bool:
    return one.canonical() == other.canonical()


@given(loaded())
def test_what_is_restored_is_in_the_registers(pair):
    processor, image = pair
    assert agree(processor.image(), image)


@given(loaded(), st.data())
def test_every_instruction_saves_the_same_registers(pair, data):
    processor, image = pair
    cpu, mask = processor.cpu, processor.xcr0
    save = data.draw(
        st.sampled_from(
            [
                (processor.xsave, Format.STANDARD, "XSAVE"),
                (processor.xsaveopt, Format.STANDARD, "XSAVEOPT"),
                (processor.xsavec, Format.COMPACTED, "XSAVEC"),
                (processor.xsaves, Format.COMPACTED, "XSAVES"),
            ]
        )
    )
    instruction, format, feature = save
    assume(cpu.has(feature))
    layout = layout_of(cpu, format, mask)
    area = bytearray(b"\xa5" * 512 + bytes(64) + b"\x5a" * (layout.size - 576))
    instruction(area, mask)
    saved = Image(area, layout)
    if format is Format.STANDARD and not saved.xstate_bv & 6:
        assert int.from_bytes(area[MXCSR], "little") == processor.file.mxcsr
        area[512] |= 2
        area[160:416] = bytes(256)
    assert agree(saved, image)


@given(loaded(), st.data())
def test_what_is_not_asked_for_stays(pair, data):
    processor, _ = pair
    before = processor.snapshot()
    asked = data.draw(masks(processor.xcr0))
    area = bytearray(Layout.standard(processor.cpu, processor.xcr0).size)
    area[MXCSR] = (0x1F80).to_bytes(4, "little")
    processor.xrstor(area, asked)
    for component in components_in(processor.xcr0):
        expected = before.initial if asked >> component & 1 else before.values
        assert processor.file.values[component] == expected[component]
    assert processor.file.mxcsr == (0x1F80 if asked & 6 else before.mxcsr)


@given(loaded())
def test_in_use_is_set_wherever_registers_are_not_initial(pair):
    processor, _ = pair
    assert not processor.file.not_initial() & ~processor.file.in_use


@given(loaded(), st.integers(0, 7), st.binary(min_size=8, max_size=8))
def test_a_snapshot_is_untouched_by_what_follows(pair, index, word):
    processor, _ = pair
    kept = processor.snapshot()
    values = dict(kept.values)
    processor.fnclex()
    processor.move_mmx(index, word)
    processor.write("mxcsr", 0x1F81)
    assert kept.values == values
    processor.file = kept
    assert processor.file.values[Component.X87] == values[Component.X87]
