"""The public builders: images and layouts of any processor, without it."""

import subprocess
import sys

import pytest

from fpstate.arch import Component, Cpu, Format, Geometry, Layout, mask_of
from fpstate.arch.component import components_in
from fpstate.errors import LayoutError, RegisterError, UnknownCpu
from fpstate.testing import build_cpu, build_image, build_layout, random_image

LAYOUTS = [build_layout(name, format) for name in Cpu.catalog_names() for format in Format]


def test_layouts_by_name_format_and_mask() -> None:
    assert build_layout("zen4") == Layout.standard(Cpu.catalog("zen4"))
    assert build_layout(Cpu.catalog("zen4"), mask=7).size == 832
    assert Component.CET_U in build_layout("tiger-lake", Format.COMPACTED)
    with pytest.raises(UnknownCpu):
        build_layout("pentium")


def test_registers_have_their_values_and_all_else_is_initial() -> None:
    image = build_image(build_layout("diamond-rapids-model"), {"tmm3": 1, "r17": 2}, leftovers=b"\xa5")
    assert image.registers.in_use() == {"tmm3": 1, "r17": 2}
    assert image.to_bytes().count(b"\xa5") > 500


def test_more_bits_than_values() -> None:
    image = build_image(
        build_layout("zen4"), present=mask_of(Component.AVX, Component.PKRU), leftovers=b"\xa5"
    )
    assert image.xstate_bv == 0x204
    assert image.registers.in_use() == {}
    with pytest.raises(LayoutError):
        build_image(build_layout("haswell"), present=mask_of(Component.PKRU))
    with pytest.raises(RegisterError):
        build_image(build_layout("haswell"), {"zmm0": 1})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.format.value}-{layout.mask:x}")
def test_random_images_are_legal_and_come_again(layout: Layout) -> None:
    for seed in range(5):
        image = random_image(layout, seed, present=layout.mask)
        assert image.xstate_bv == layout.mask
        assert image.to_bytes() == random_image(layout, seed, present=layout.mask).to_bytes()
        assert image.registers["mxcsr"] >> 16 == 0
        assert image.registers["fctrl"] & 0xE0C0 == 0x40
        assert image.registers.get("rtit_ctl", 0) == image.registers.get("uintr_uinv", 0) == 0
        assert image.registers.get("palette_id", 0) in (0, 1)
    assert len({random_image(layout, seed).to_bytes() for seed in range(20)}) == 20


def test_random_images_leave_some_components_out() -> None:
    masks = {random_image(LAYOUTS[0], seed).xstate_bv for seed in range(50)}
    assert len(masks) > 3


def test_leftovers_are_where_no_state_is() -> None:
    layout = build_layout("zen4")
    clean, dirty = (random_image(layout, 7, present=0xE6, leftovers=each) for each in (b"", b"\xa5"))
    assert dirty == clean
    assert dirty.to_bytes() != clean.to_bytes()


def test_a_processor_by_its_geometry() -> None:
    cpu = build_cpu({20: Geometry(100, 600, False, True, False), 21: Geometry(8, 0, True, False, False)})
    assert (cpu.xcr0, cpu.xss) == (0x100003, 0x200000)
    assert set(components_in(build_layout(cpu, mask=cpu.xcr0).mask)) == {0, 1, 20}


def test_without_hypothesis_the_builders_work_and_the_strategies_say_why_not() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import fpstate.testing as t\n"
        "t.random_image(t.build_layout('zen4'), 1)\n"
        "try: t.images\n"
        "except Exception as error: print(type(error).__name__, error, error.help)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("UnsupportedHere")
    assert "pip install hypothesis" in result.stdout
