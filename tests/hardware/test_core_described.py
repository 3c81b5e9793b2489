"""The native core's checks and slabs on an Intel processor with AMX, whatever processor runs the tests."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from oracle import ENVIRONMENT

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.arch.exception import dynamic_components
from fpstate.errors import ImageError
from fpstate.program import include_dir
from fpstate.testing import build_image, build_layout
from recorded import INTEL, OracleFile, build

SOURCES = Path(__file__).parents[2] / "src/fpstate/_core"
FILES = ("dumps.c", "legal.c", "arrangement.c", "slab_type.c", "errors.c")
FLAGS = ("-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-D_GNU_SOURCE")
INTEL_CPU = Cpu.catalog("emerald-rapids")
TILEDATA = mask_of(Component.TILEDATA)
ALL = INTEL_CPU.xcr0
AREA = Layout.standard(INTEL_CPU).size
PAGE = 4096


@pytest.fixture(scope="module")
def described(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The core's own files, compiled around a processor and a kernel that a test describes."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        pytest.skip("Python.h is not installed")
    target = tmp_path_factory.mktemp("described") / "described_core.so"
    headers = [f"-I{path}" for path in (include, SOURCES, include_dir())]
    sources = [Path(__file__).with_name("described_core.c"), *(SOURCES / name for name in FILES)]
    subprocess.run(
        [gcc, *FLAGS, "-DPy_LIMITED_API=0x030b0000", *headers, "-o", target, *sources],
        check=True,
        env=ENVIRONMENT,
    )
    spec = importlib.util.spec_from_file_location("described_core", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Describe = Callable[..., ModuleType]


@pytest.fixture
def on_intel(described: ModuleType) -> Describe:
    """on_intel(permission, dynamic=...) -> the core there; the kernel has not been asked yet."""

    def describe(permission: int | None, *, dynamic: int = dynamic_components(INTEL_CPU)) -> ModuleType:
        rows = [
            (number, each.size, each.offset, each.aligned)
            for number, each in INTEL_CPU.geometry.items()
            if not each.supervisor
        ]
        described.describe(ALL, dynamic, AREA, INTEL_CPU.mxcsr_mask, rows)
        described.permit(permission)
        return described

    return describe


def problem(core: ModuleType, image: bytes) -> ImageError | None:
    """What the core's check finds wrong with an image."""
    try:
        core.check_image(image)
    except ImageError as error:
        return error
    return None


def with_tiles(form: Format = Format.STANDARD, present: int = TILEDATA) -> bytes:
    layout = build_layout(INTEL_CPU, form, ALL & ~mask_of(Component.PKRU))
    return build_image(layout, {"xmm0": 1}, present=present).to_bytes()


@pytest.mark.parametrize("form", list(Format))
def test_tiles_without_permission_are_refused_by_name_and_the_kernel_is_asked_once(on_intel, form):
    core = on_intel(ALL & ~TILEDATA)
    image = with_tiles(form)
    error = problem(core, image)
    assert error is not None
    assert (error.offset, error.component) == (512, Component.TILEDATA)
    assert (error.found, error.expected) == (TILEDATA | 2, 2)
    assert str(error).startswith("no permission for TILEDATA: XSTATE_BV 0x40002 at byte 512")
    assert core.permit(ALL) == 1
    assert problem(core, image) is None


@pytest.mark.parametrize("form", list(Format))
def test_a_core_that_does_not_know_what_is_dynamic_would_let_them_through(on_intel, form):
    """The negative control: such a core said #GP after the fault."""
    assert problem(on_intel(ALL & ~TILEDATA, dynamic=0), with_tiles(form)) is None


def test_the_kernel_is_not_asked_for_images_without_tiles(on_intel):
    core = on_intel(ALL & ~TILEDATA)
    for form in Format:
        assert problem(core, with_tiles(form, present=mask_of(Component.TILECFG, Component.AVX))) is None
    assert core.permit(0) == 0


def test_where_the_kernel_does_not_say_the_processor_is_tried(on_intel):
    core = on_intel(None)
    assert problem(core, with_tiles()) is None
    assert core.permit(None) == 1


def whole_restores(file: OracleFile) -> Iterator[tuple[int, bytes, list[int] | None]]:
    """The recorded XRSTORs of everything from aligned memory that did not end early: image and fault."""
    templates, managed = file.templates(), ALL & ~mask_of(Component.PKRU)
    for number, case in enumerate(file.cases):
        fault = case["r"].get("f")
        whole = case["o"] == "xrstor64" and case["m"] & managed == managed
        if not whole or (case["s"] + case["n"]) % 64 or (fault and fault[2] == 14):
            continue
        image = build(case["p"], file.pool, case["n"], templates[case["t"]])
        yield number, bytes(image).ljust(AREA, b"\0"), fault


def disagreements(core: ModuleType, file: OracleFile) -> tuple[int, int, list[int]]:
    """How many answers were foretold, how many of them refusals, and which were not."""
    judged, refused, wrong = 0, 0, []
    for number, image, fault in whole_restores(file):
        error = problem(core, image)
        no_permission = error is not None and error.component == Component.TILEDATA
        expected = fault is not None, fault is not None and fault[:2] == [4, 1]
        judged += 1
        refused += expected[0]
        if (error is not None, no_permission) != expected:
            wrong.append(number)
    return judged, refused, wrong


@pytest.mark.parametrize(("name", "permission"), [("xrstor-noamx", ALL & ~TILEDATA), ("xrstor-amx", ALL)])
def test_the_check_foretells_each_recorded_answer(on_intel, name, permission):
    judged, refused, wrong = disagreements(on_intel(permission), INTEL.read(name))
    assert wrong == []
    assert judged > 1000
    assert judged / 5 < refused < judged * 4 / 5


def test_a_check_that_let_tiles_through_would_be_seen(on_intel):
    """The negative control of the test above."""
    _, _, wrong = disagreements(on_intel(ALL & ~TILEDATA, dynamic=0), INTEL.read("xrstor-noamx"))
    assert len(wrong) > 20


SLABS = [(576, 113), (832, 78), (832, 7), (2432, 26), (2688, 24), (64, 64), (832, 64 * 78)]


@pytest.mark.parametrize(("stride", "count"), SLABS)
def test_a_whole_image_fits_behind_the_start_of_the_last_slot(on_intel, stride, count):
    slab = on_intel(ALL).Slab(stride, count)
    needed = stride * (count - 1) + AREA
    assert slab.mapped >= needed
    assert ctypes.string_at(slab.address + stride * (count - 1) + AREA - 64, 64) == bytes(64)


def test_a_page_behind_the_slots_would_not_be_enough():
    """The negative control: what was mapped before ends inside of what a restore of the last slot reads."""
    short = [
        (stride, count)
        for stride, count in SLABS
        if (stride * count + 2 * PAGE - 1) // PAGE * PAGE < stride * (count - 1) + AREA
    ]
    assert (832, 78) in short
    assert len(short) > len(SLABS) // 2
