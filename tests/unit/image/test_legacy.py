"""FXSAVE and FSAVE images, by hand and as Linux wrote them."""

import struct
from pathlib import Path

import pytest

from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.errors import ImageError
from fpstate.image import Image
from fpstate.image.legacy import (
    FSAVE_LAYOUT,
    FXSAVE_LAYOUT,
    from_fsave,
    from_fxsave,
    fsave_selectors,
    to_fsave,
    to_fxsave,
)
from fpstate.testing import build_image, random_image
from recorded import OWN

ZEN4 = Layout.standard(Cpu.catalog("zen4"))
PI = 0x4000C90FDAA22168C235
"""80 bits, as FLDPI loads them."""


REGSETS = [
    (OWN / "generated/ptrace", Layout.standard(Cpu.catalog("zen4"), 0xE7)),
    (OWN / "generated_intel/ptrace", Layout.standard(Cpu.catalog("emerald-rapids"), 0x602E7)),
]
"""Folders of regsets that Linux wrote, and the layout of NT_X86_XSTATE among them."""


def test_fxsave_makes_both_components_present() -> None:
    data = bytearray(512)
    data[0:2], data[24:28] = b"\x7f\x03", b"\x80\x1f\0\0"
    image = from_fxsave(data)
    assert image.xstate_bv == 3
    assert image.layout == FXSAVE_LAYOUT
    assert image.layout.format is Format.STANDARD
    assert image.registers.in_use() == {}
    image.registers["xmm1"] = 5
    assert data[160 + 16] == 0


def test_fxsave_of_an_absent_state_is_the_initial_one() -> None:
    data = to_fxsave(build_image(ZEN4, leftovers=b"\xcc"))
    assert struct.unpack_from("<HHBB", data) == (0x37F, 0, 0, 0)
    assert struct.unpack_from("<I", data, 24) == (0x1F80,)
    assert data[32:] == bytes(480)


def test_fxsave_leaves_out_what_it_cannot_hold() -> None:
    image = random_image(ZEN4, 1, present=0xE7)
    kept = from_fxsave(to_fxsave(image)).registers
    for name in kept.names():
        assert kept[name] == image.registers[name]


def test_fsave_of_the_initial_state() -> None:
    data = to_fsave(Image.initial(FSAVE_LAYOUT), cs=0x23, ds=0x2B)
    assert struct.unpack_from("<7I", data) == (0xFFFF037F, 0xFFFF0000, 0xFFFFFFFF, 0, 0x23, 0, 0xFFFF002B)
    assert data[28:] == bytes(80)


def test_fsave_has_the_tags_by_register_and_the_values_by_stack() -> None:
    image = build_image(FSAVE_LAYOUT, {"fstat": 6 << 11, "st0": PI, "st1": 0})
    data = to_fsave(image)
    assert struct.unpack_from("<I", data, 8) == (0xFFFF4FFF,)  # R6 valid, R7 zero
    assert int.from_bytes(data[28:38], "little") == PI
    assert from_fsave(data).registers["ftag_abridged"] == 0xC0


def test_fsave_splits_opcode_and_selectors() -> None:
    image = build_image(FSAVE_LAYOUT, {"fop": 0x5DD, "fip": 0x1_2345_6789, "fdp": 0x89AB_CDEF})
    data = to_fsave(image, cs=0x23, ds=0x2B)
    assert struct.unpack_from("<4I", data, 12) == (0x2345_6789, 0x05DD0023, 0x89AB_CDEF, 0xFFFF002B)
    assert fsave_selectors(data) == (0x23, 0x2B)
    back = from_fsave(data).registers
    assert (back["fop"], back["fip"], back["fdp"]) == (0x5DD, 0x2345_6789, 0x89AB_CDEF)


def test_fsave_recomputes_what_a_restore_would() -> None:
    image = build_image(FSAVE_LAYOUT, {"fctrl": 0x37B, "fstat": 0x0004})
    assert struct.unpack_from("<I", to_fsave(image), 4) == (0xFFFF8084,)
    image = build_image(FSAVE_LAYOUT, {"fctrl": 0x37F, "fstat": 0x8084})
    assert struct.unpack_from("<I", to_fsave(image), 4) == (0xFFFF0004,)


@pytest.mark.parametrize("length", [0, 107, 109, 112, 511, 512])
def test_an_fsave_image_of_another_length_is_refused(length: int) -> None:
    for read in (from_fsave, fsave_selectors):
        with pytest.raises(ImageError) as caught:
            read(bytes(length))
        assert (caught.value.found, caught.value.expected) == (length, 108)
        assert caught.value.offset == min(length, 108)


@pytest.mark.parametrize("length", [0, 108, 511, 513, 576, 832])
def test_an_fxsave_image_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ImageError) as caught:
        from_fxsave(bytes(length))
    assert (caught.value.found, caught.value.expected) == (length, 512)


@pytest.mark.parametrize(("ptrace", "layout"), REGSETS, ids=["amd", "intel"])
def test_linux_wrote_the_same_fsave_regset(ptrace: Path, layout: Layout) -> None:
    """NT_PRFPREG of a 32-bit process is the FSAVE form of its NT_X86_XSTATE."""
    found = sorted(ptrace.glob("i386_*.fpregset.bin"))
    assert found
    for path in found:
        xstate = path.with_name(path.name.replace("fpregset", "xstate")).read_bytes()
        image = Image(xstate, layout)
        data = path.read_bytes()[:108]
        cs, ds = fsave_selectors(data)
        assert to_fsave(image, cs=cs, ds=ds) == data
        assert from_fsave(data).canonical().components[0] == image.canonical().components[0]


@pytest.mark.parametrize(("ptrace", "layout"), REGSETS, ids=["amd", "intel"])
def test_linux_wrote_the_same_fxsave_regset(ptrace: Path, layout: Layout) -> None:
    """NT_PRFPREG of a 64-bit process is the FXSAVE form of its NT_X86_XSTATE."""
    found = sorted(ptrace.glob("x64_*.fpregset.bin"))
    assert found
    for path in found:
        xstate = path.with_name(path.name.replace("fpregset", "xstate")).read_bytes()
        image = Image(xstate, layout)
        fxsave = bytearray(to_fxsave(from_fxsave(path.read_bytes())))
        if not image.xstate_bv & (1 << Component.SSE | 1 << Component.AVX):
            fxsave[28:32] = bytes(4)  # MXCSR_MASK is no register, and stated with SSE or AVX alone
        assert to_fxsave(image) == fxsave
