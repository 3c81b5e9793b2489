"""Two cores with one meaning: what a switch saves and loads is what XSAVE and XRSTOR would have."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from fpstate.arch import Component, mask_of
from fpstate.arch.component import components_in
from fpstate.errors import SettingError, UnsupportedHere
from fpstate.vso.switching import CLASSES

LONG = os.environ.get("FPSTATE_LONG") == "1"
SANITIZED = os.environ.get("FPSTATE_SANITIZED") == "1"
SWITCHES = 1_000_000 if LONG or not SANITIZED else 50_000
LEGACY_AND_AVX = mask_of(Component.X87, Component.SSE, Component.AVX)
AVX512 = mask_of(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM)
CORES = ("portable", "fast", "fast-avx512", "fast-avx")
INTEL, AMD, FAR_APART = (576, 1088, 1152, 1664), (576, 832, 896, 1408), (3200, 640, 2048, 1024)


@pytest.fixture(params=CORES)
def core_name(core: ModuleType, request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not exists(core, name):
        pytest.skip(f"the {name} core needs XGETBV(1), AVX and, for AVX-512, XCR0[7:5] with AVX512BW")
    return name


@pytest.fixture
def fast(core: ModuleType) -> ModuleType:
    if not exists(core, "fast"):
        pytest.skip("the fast core needs XGETBV(1) and AVX")
    return core


def exists(core: ModuleType, name: str) -> bool:
    try:
        core.core_trial(name, 1)
    except UnsupportedHere:
        return False
    return True


def classes(core: ModuleType) -> int:
    """How many states the trial has: each combination of components, and again with MXCSR alone in SSE's place."""
    usable = core.features()["managed_mask"] & (LEGACY_AND_AVX | AVX512)
    combinations = 1 << len(list(components_in(usable)))
    return combinations + combinations // 2


def test_every_pair_of_in_use_classes_comes_out_right(core, core_name):
    report = core.core_trial(core_name)
    assert report["mismatches"] == 0, report
    assert report["pairs"] == classes(core) ** 2


def test_random_states_come_out_right(core, core_name):
    report = core.core_trial(core_name, SWITCHES // len(CORES), seed=7)
    assert report["mismatches"] == 0, report
    assert report["pairs"] == SWITCHES // len(CORES)


def test_the_fast_core_makes_a_million_switches_between_random_states(fast):
    report = fast.core_trial("fast", SWITCHES, seed=2026)
    assert (report["mismatches"], report["pairs"]) == (0, SWITCHES), report


@pytest.mark.parametrize("offsets", [INTEL, AMD, FAR_APART], ids=["Intel", "AMD", "out of order"])
def test_offsets_are_data(fast, offsets):
    """The moves alone, on areas laid out as other processors have them, and as none has."""
    assert fast.core_trial("fast", offsets=offsets)["mismatches"] == 0
    assert fast.core_trial("fast", 20_000, offsets=offsets)["mismatches"] == 0


def test_offsets_outside_of_the_area_are_refused(fast):
    for offsets in ((0, 832, 896, 1408), (576, 832, 896, 1 << 31)):
        if fast.features()["managed_mask"] & AVX512 == AVX512:
            with pytest.raises(ValueError, match="leaves"):
                fast.core_trial("fast", offsets=offsets)


@pytest.mark.parametrize(
    "moved", range(16), ids=lambda moved: f"moves for {moved:04b} of AVX and AVX-512's three"
)
def test_components_without_moves_go_through_xsavec_and_xrstor(fast, moved):
    """What a processor with components that nobody has moves for will do, tried with those that this one has."""
    optional = list(components_in(fast.features()["managed_mask"] & (AVX512 | mask_of(Component.AVX))))
    moves = mask_of(*(number for place, number in enumerate(optional) if moved >> place & 1))
    for name in ("fast", "fast-avx"):
        report = fast.core_trial(name, moves=moves)
        assert report["mismatches"] == 0, (name, report)


def test_the_portable_core_does_without_xsavec(core):
    """XSAVE and XRSTOR, in the standard format."""
    for count in (0, 20_000):
        report = core.core_trial("portable-xsave", count, standard=True)
        assert report["mismatches"] == 0, report
    if core.features()["xsavec"]:
        assert core.core_trial("portable", standard=True)["mismatches"] > 0


@pytest.mark.parametrize(
    "moved", range(16), ids=lambda moved: f"moves for {moved:04b} of AVX and AVX-512's three"
)
def test_components_without_moves_go_through_xsave_in_the_standard_format(fast, moved):
    optional = list(components_in(fast.features()["managed_mask"] & (AVX512 | mask_of(Component.AVX))))
    moves = mask_of(*(number for place, number in enumerate(optional) if moved >> place & 1))
    for name in ("fast", "fast-avx"):
        report = fast.core_trial(name, moves=moves, standard=True)
        assert report["mismatches"] == 0, (name, report)


@pytest.mark.parametrize(
    ("twin", "component", "saved"),
    [
        ("without-k1-to-k7", Component.OPMASK, False),
        ("without-mxcsr", Component.SSE, False),
        ("without-mxcsr-avx", Component.SSE, False),
    ],
)
def test_a_core_that_forgets_something_is_caught_and_refused(core, twin, component, saved):
    if not exists(core, twin):
        pytest.skip("AVX-512 (XCR0[7:5], AVX512BW)" if "avx" not in twin else "AVX and XGETBV(1)")
    report = core.core_trial(twin)
    assert report["mismatches"] > 0
    assert (report["component"], report["saved"]) == (component, saved)
    choice = core.core_choice(candidate=twin)
    assert choice["core"] == "portable"
    assert "the self-test refused the fast core" in choice["reason"]
    with pytest.raises(UnsupportedHere, match="self-test refused"):
        core.core_choice("fast", twin)
    with pytest.raises(SettingError):
        core.core_use(twin)


def test_a_core_is_chosen_once_and_says_why(core):
    choice = core.core_choice()
    assert choice == core.core_choice()
    assert choice["core"] in {"portable", "fast"}
    assert choice["reason"]
    if choice["pairs"]:
        assert choice["pairs"] == classes(core) ** 2
        assert choice["mismatches"] == 0
        measured = [core.core_choice(candidate="fast")["measure_cycles"] for _ in range(10)]
        assert min(choice["measure_cycles"], *measured) < 20e-3 * core.tsc_hz()


def test_the_setting_decides(core):
    assert core.core_choice("portable")["core"] == "portable"
    if exists(core, "fast"):
        assert core.core_choice("fast")["core"] == "fast"
    with pytest.raises(SettingError, match="FPSTATE_CORE is 'quick'; it may be portable or fast"):
        core.core_choice("quick")


def test_a_fast_core_that_is_not_there_leaves_the_portable_one(core):
    choice = core.core_choice(candidate="none of these")
    assert (choice["core"], choice["pairs"]) == ("portable", 0)
    assert "fast core" in choice["reason"]
    with pytest.raises(UnsupportedHere, match="fast core"):
        core.core_choice("fast", "none of these")


@pytest.mark.parametrize(("setting", "code"), [("portable", 0), ("fast", 0), ("quick", 2), ("", 0)])
def test_the_environment_decides_at_start_up(core, setting, code):
    if setting == "fast" and not exists(core, "fast"):
        code = 3
    command = [sys.executable, "-m", "fpstate", "cpu"]
    done = subprocess.run(
        command, env=os.environ | {"FPSTATE_CORE": setting}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stderr
    if setting and not code:
        assert f"switching core     {setting}: FPSTATE_CORE={setting}" in done.stdout
    if code == 2:
        assert "FPSTATE_CORE is 'quick'" in done.stderr


def test_a_setting_that_is_no_text_is_refused_as_a_setting(core):
    done = subprocess.run(
        [sys.executable, "-m", "fpstate", "cpu"],
        env={**os.environb, b"FPSTATE_CORE": b"\xff\xfe\n" + b"\xc3\xa4" * 40},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert f"FPSTATE_CORE is '{'?' * 40}'" in done.stderr


def test_the_other_core_can_be_put_in_its_place(fast):
    earlier = fast.core_use("portable")
    try:
        assert fast.core_use("fast") == "portable"
        assert fast.core_use("portable") == "fast"
    finally:
        fast.core_use(earlier)
    with pytest.raises(SettingError):
        fast.core_use("quick")


def test_cycles_of_a_switch_are_counted(core):
    legacy = mask_of(Component.X87, Component.SSE)
    assert core.core_cycles("portable", legacy, 0, 100)[0] > 100
    with pytest.raises(UnsupportedHere):
        core.core_cycles("quick", 0, 0, 1)


@pytest.mark.parametrize("name", ["portable", "fast"])
def test_what_is_timed_is_what_stays_after_contexts_with_everything(core, name):
    """The portable core's XRSTOR ends components; another core may leave them in use, never fewer than there are."""
    if not exists(core, name):
        pytest.skip("the fast core (XGETBV with ECX=1, AVX)")
    for mask in CLASSES.values():
        here = mask & core.features()["managed_mask"]
        _, settled = core.core_cycles(name, here, here, 10)
        assert settled & here == here
        assert name == "fast" or settled == here


def test_a_core_that_leaves_x87_in_use_is_timed_with_it(core):
    """On every processor: this twin leaves the registers too, not only the bit, as AMD's in-use bits go by values."""
    names = [name for name in ("without-x87-end", "without-x87-end-avx") if exists(core, name)]
    if not names:
        pytest.skip("AVX, which the fast core needs")
    sse, legacy = mask_of(Component.SSE), mask_of(Component.SSE, Component.X87)
    for name in names:
        assert core.core_cycles(name, sse, sse, 10)[1] & legacy == legacy
        assert core.core_trial(name)["mismatches"]


def test_the_choice_tells_what_stayed_in_use(core):
    choice = core.core_choice()
    if not choice["pairs"]:
        pytest.skip("the fast core (XGETBV with ECX=1, AVX)")
    asked = [mask & core.features()["managed_mask"] for mask in CLASSES.values()]
    assert [stayed & mask for stayed, mask in zip(choice["settled"], asked, strict=True)] == asked
