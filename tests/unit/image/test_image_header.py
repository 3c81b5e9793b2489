"""An image is bytes and a layout that must agree with each other."""

import pytest

from fpstate.arch.component import COMPACTED_BIT, Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError, RegisterError
from fpstate.image import Image

CPU = Cpu.catalog("sapphire-rapids")
STANDARD = Layout.standard(CPU)
COMPACTED = Layout.compacted(CPU)
BOTH = pytest.mark.parametrize("layout", [STANDARD, COMPACTED], ids=["standard", "compacted"])


def with_header(layout: Layout, xstate_bv: int, xcomp_bv: int) -> Image:
    data = bytearray(layout.size)
    data[512:528] = xstate_bv.to_bytes(8, "little") + xcomp_bv.to_bytes(8, "little")
    return Image(bytes(data), layout)


@BOTH
def test_the_initial_image_is_initial_and_has_the_header_of_its_format(layout: Layout) -> None:
    image = Image.initial(layout)
    assert (image.xstate_bv, image.xcomp_bv, image.reserved) == (0, layout.xcomp_bv, bytes(48))
    assert image.to_bytes()[0:2] == b"\x7f\x03"
    assert image.to_bytes()[24:28] == b"\x80\x1f\0\0"
    assert (image.in_use, image.registers.in_use()) == (0, {})
    assert (image.registers["fctrl"], image.registers["mxcsr"], image.registers["ftag"]) == (
        0x37F,
        0x1F80,
        0xFFFF,
    )
    assert image.layout_source == "given"


@BOTH
@pytest.mark.parametrize("excess", [-1, 1, -576])
def test_the_length_must_be_the_layouts(layout: Layout, excess: int) -> None:
    with pytest.raises(ImageError) as caught:
        Image(bytes(layout.size + excess), layout)
    assert (caught.value.found, caught.value.expected) == (layout.size + excess, layout.size)
    assert caught.value.offset == min(layout.size + excess, layout.size)


@pytest.mark.parametrize(
    ("layout", "xcomp_bv"),
    [
        (STANDARD, COMPACTED_BIT | STANDARD.mask),
        (STANDARD, 1),
        (COMPACTED, 0),
        (COMPACTED, COMPACTED_BIT | COMPACTED.mask & ~4),
        (COMPACTED, COMPACTED_BIT | COMPACTED.mask | 8),
        (COMPACTED, COMPACTED.mask),
    ],
)
def test_a_header_of_another_format_or_layout_is_refused_when_decoded(layout: Layout, xcomp_bv: int) -> None:
    image = with_header(layout, 0, xcomp_bv)
    assert image.xcomp_bv == xcomp_bv
    for decode in (image.canonical, lambda: image.registers["k1"], lambda: image.registers.in_use()):
        with pytest.raises(ImageError, match="XCOMP_BV") as caught:
            decode()
        assert (caught.value.offset, caught.value.found, caught.value.expected) == (
            520,
            xcomp_bv,
            layout.xcomp_bv,
        )


@BOTH
@pytest.mark.parametrize("bit", [3, 19, 62, 63])
def test_components_that_the_layout_has_no_room_for_are_refused_when_decoded(
    layout: Layout, bit: int
) -> None:
    image = with_header(layout, 1 << bit | 1, layout.xcomp_bv)
    assert image.xstate_bv == 1 << bit | 1
    with pytest.raises(ImageError, match="XSTATE_BV") as caught:
        _ = image.in_use
    assert (caught.value.offset, caught.value.found, caught.value.expected) == (512, 1 << bit | 1, 1)


def test_a_bytearray_is_shared_and_bytes_are_not_written() -> None:
    data = bytearray(Image.initial(STANDARD).to_bytes())
    Image(data, STANDARD).registers["k3"] = 5
    assert data[1088 + 24] == 5
    frozen = Image(bytes(data), STANDARD)
    assert frozen.readonly
    with pytest.raises(RegisterError, match="read-only") as caught:
        frozen.registers["k3"] = 6
    assert "copy" in caught.value.help
    thawed = frozen.copy()
    thawed.registers["k3"] = 6
    assert (frozen.registers["k3"], thawed.registers["k3"]) == (5, 6)


def test_a_window_of_a_larger_buffer_is_an_image() -> None:
    buffer = bytearray(64 + STANDARD.size)
    window = memoryview(buffer)[64:]
    window[:] = Image.initial(STANDARD).to_bytes()
    Image(window, STANDARD).registers["pkru"] = 0x55555554
    assert buffer[64 + 2688 : 64 + 2692] == b"\x54\x55\x55\x55"


def test_a_compacted_layout_may_do_without_the_legacy_components() -> None:
    layout = Layout.compacted(CPU, mask_of(Component.OPMASK, Component.HI16_ZMM))
    image = Image.initial(layout)
    image.registers["zmm20"] = 1 << 511
    assert image.xstate_bv == mask_of(Component.HI16_ZMM)
    assert "xmm0" not in image.registers
    assert "mxcsr" not in image.registers
    assert image.registers.names(widest=True) == (
        *(f"zmm{n}" for n in range(16, 32)),
        *(f"k{n}" for n in range(8)),
    )


def test_images_name_themselves() -> None:
    assert repr(Image.initial(STANDARD)) == (
        "<Image of 11008 bytes, standard 0x602e7 (given), XSTATE_BV=0x0>"
    )
