"""What Linux derives from a processor at boot: features, sizes, XCR0, IA32_XSS, and the signal frame."""

from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY, xcr0_problem
from fpstate.errors import CpuidError
from fpstate.image.consumer import Target
from fpstate.vso.config import FpuConfig, StateConfig
from fpstate.vso.signal_frame import minsigstksz, sigframe_size

TILEDATA = mask_of(Component.TILEDATA)
CET_S = mask_of(Component.CET_S)
SPR = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"))
ZEN4 = FpuConfig.from_cpu(Cpu.catalog("zen4"))


def zen4_without_pku() -> Cpu:
    cpu = Cpu.catalog("zen4")
    return replace(cpu, name="zen4-guest", xcr0=0xE7, features=cpu.features - {"PKU"})


# One row for each processor: XCR0, IA32_XSS, then bytes. Standard format: everything, and what is there by default;
# compacted: every user component; the kernel's images without and with CET_S; those of hosts and guests.
DERIVED = {
    "zen1": (0x7, 0, 832, 832, 832, 832, 832, 832, 832),
    "haswell": (0x7, 0, 832, 832, 832, 832, 832, 832, 832),
    "bulldozer": (1 << 62 | 0x7, 0, 832, 832, 832, 832, 832, 832, 832),
    "zen2": (0x207, 0, 832, 832, 832, 832, 832, 832, 832),
    "zen3": (0x207, 0x1800, 2440, 2440, 840, 856, 880, 856, 880),
    "zen4": (0x2E7, 0x1800, 2440, 2440, 2440, 2456, 2480, 2456, 2480),
    "zen5": (0x2E7, 0x1800, 2440, 2440, 2440, 2456, 2480, 2456, 2480),
    "zen4 without PKU": (0xE7, 0x1800, 2432, 2432, 2432, 2448, 2472, 2448, 2472),
    "skylake-client": (0x1F, 0x100, 1088, 1088, 960, 960, 960, 960, 960),
    "skylake-x": (0xFF, 0x100, 2688, 2688, 2560, 2560, 2560, 2560, 2560),
    "skylake-sp": (0x2FF, 0x100, 2696, 2696, 2568, 2568, 2568, 2568, 2568),
    "knights-landing": (0xE7, 0, 2688, 2688, 2432, 2688, 2688, 2688, 2688),
    "ice-lake-sp": (0x2E7, 0x100, 2696, 2696, 2440, 2440, 2440, 2440, 2440),
    "tiger-lake": (0x2E7, 0x3900, 2696, 2696, 2440, 2456, 2480, 2456, 2480),
    "alder-lake": (0x207, 0x19900, 2696, 2696, 840, 856, 880, 856, 880),
    "sapphire-rapids": (0x602E7, 0xDD00, 11008, 2816, 10752, 10752, 10752, 2560, 2560),
    "granite-rapids": (0x602E7, 0x1DD00, 11008, 2816, 10752, 10752, 10752, 2560, 2560),
    "diamond-rapids-model": (0xE02E7, 0x1DD00, 11008, 2816, 10880, 10880, 10880, 2688, 2688),
    "apx-no-amx-model": (0x802E7, 0x1D900, 2696, 2696, 2568, 2584, 2608, 2584, 2608),
}
RAW_STANDARD_SIZES = {"zen2": 896, "bulldozer": 960}
"""What CPUID itself states where Linux leaves components out: PKRU without PKU, and LWP."""


def derived(cpu: Cpu) -> tuple[int, ...]:
    config, older = FpuConfig.from_cpu(cpu), FpuConfig.from_cpu(cpu, guest_supervisor=False)
    assert older.guest_default == older.kernel_default
    return (
        *(cpu.xcr0, cpu.xss, config.user_max.size, config.user_default.size),
        *(Layout.compacted(cpu, config.user_max.features).size, older.kernel_max.size),
        *(config.kernel_max.size, config.kernel_default.size, config.guest_default.size),
    )


def processor(name: str) -> Cpu:
    return zen4_without_pku() if name == "zen4 without PKU" else Cpu.catalog(name)


@pytest.mark.parametrize("name", DERIVED)
def test_what_linux_derives(name: str) -> None:
    assert derived(processor(name)) == DERIVED[name]


@pytest.mark.parametrize("name", DERIVED)
def test_what_cpuid_states_is_the_size_of_everything_it_enumerates(name: str) -> None:
    cpu = processor(name)
    config = FpuConfig.from_cpu(cpu)
    raw = RAW_STANDARD_SIZES.get(name, config.user_max.size)
    assert Layout.standard(cpu, cpu.xcr0).size == raw
    assert name == "zen4 without PKU" or cpu.standard_size == raw


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("zen2", {"add": "PKU"}),
        ("knights-landing", {"add": "XSAVEC"}),
        ("zen4", {"drop": "CET_SS"}),
        ("zen3", {"drop": "XSAVES"}),
        ("sapphire-rapids", {"drop": "XFD"}),
        ("skylake-sp", {"drop": "PKU"}),
        ("diamond-rapids-model", {"drop": "APX_F"}),
        ("skylake-client", {"drop": "MPX"}),
    ],
)
def test_the_sizes_follow_the_feature_flags(name: str, change: dict[str, str]) -> None:
    cpu = Cpu.catalog(name)
    features = cpu.features | {change["add"]} if "add" in change else cpu.features - {change["drop"]}
    assert derived(replace(cpu, features=features)) != DERIVED[name]


@pytest.mark.parametrize("name", DERIVED)
def test_the_default_is_the_maximum_without_what_is_given_on_request_or_to_guests(name: str) -> None:
    config = FpuConfig.from_cpu(processor(name))
    everything = config.kernel_max.features
    assert config.kernel_default.features == everything & ~(TILEDATA | CET_S)
    assert config.guest_default.features == everything & ~TILEDATA
    assert config.user_default.features == config.user_max.features & ~TILEDATA
    assert config.init_xfd == config.user_max.features & TILEDATA
    assert config.xcr0 == config.user_max.features
    assert not config.xss & mask_of(Component.PT, Component.HDC, Component.UINTR, Component.HWP)


def test_sizes_of_a_zen4_guest_without_protection_keys() -> None:
    config = FpuConfig.from_cpu(zen4_without_pku())
    assert (config.user_max.size, config.kernel_default.size, config.kernel_max.size) == (2432, 2448, 2472)
    assert config.kernel_max.features == 0x18E7


def test_the_guest_default_differs_from_the_host_default_by_cet_s_alone() -> None:
    assert ZEN4.guest_default.features ^ ZEN4.kernel_default.features == CET_S
    assert ZEN4.guest_default.size - ZEN4.kernel_default.size == 24


def test_a_size_that_the_alignment_of_tiles_hides() -> None:
    assert SPR.guest_default.features ^ SPR.kernel_default.features == CET_S
    assert SPR.guest_default.size == SPR.kernel_default.size


def test_dynamic_components_are_in_the_maximum_and_in_no_default() -> None:
    assert SPR.kernel_max.features & SPR.user_max.features & TILEDATA
    defaults = (SPR.kernel_default, SPR.user_default, SPR.guest_default)
    assert not any(config.features & TILEDATA for config in defaults)
    assert SPR.init_xfd == TILEDATA
    assert ZEN4.init_xfd == 0


def test_without_xfd_there_are_no_dynamic_components() -> None:
    cpu = SPR.cpu
    config = FpuConfig.from_cpu(replace(cpu, features=cpu.features - {"XFD"}))
    assert not config.kernel_max.features & TILEDATA
    assert config.init_xfd == 0
    assert config.user_max.size == 2696


@pytest.mark.parametrize("name", Cpu.catalog_names())
@pytest.mark.parametrize("lacking", ["", "XFD", "AVX", "AVX512F", "MPX"])
def test_xsetbv_takes_what_linux_would_enable(name: str, lacking: str) -> None:
    cpu = Cpu.catalog(name)
    features = cpu.features - ({"AVX", "AVX512F"} if lacking == "AVX" else {lacking})
    narrowed = replace(cpu, features=features)
    assert xcr0_problem(FpuConfig.from_cpu(narrowed).xcr0, cpu.xcr0) is None
    assert xcr0_problem(Target.from_cpu(narrowed).xcr0, cpu.xcr0) is None


def test_what_the_operating_system_left_off_is_left_out() -> None:
    config = FpuConfig.from_cpu(replace(ZEN4.cpu, enabled_xcr0=0x7))
    assert config.user_max == StateConfig(0x7, 832)
    assert config.kernel_max.features == 0x1807


def test_xcr0_has_dynamic_components_and_xss_the_independent_ones() -> None:
    assert SPR.xcr0 == 0x602E7
    assert SPR.xss == 0x9C00
    assert SPR.independent_features == mask_of(Component.LBR)
    assert not SPR.kernel_max.features & SPR.independent_features
    assert SPR.legacy_features == LEGACY


def test_linux_does_not_know_lightweight_profiling() -> None:
    cpu = Cpu.catalog("bulldozer")
    assert Layout.standard(cpu).size == 960
    assert FpuConfig.from_cpu(cpu).user_max.size == 832


def test_without_compaction_the_kernel_image_is_standard() -> None:
    knights = FpuConfig.from_cpu(Cpu.catalog("knights-landing"))
    assert not knights.compacted
    assert knights.kernel_layout(0xE7).xcomp_bv == 0
    assert ZEN4.kernel_layout(0xE7).xcomp_bv == 1 << 63 | 0xE7


def test_processors_on_which_linux_turns_xsave_off_are_refused() -> None:
    cpu = Cpu.catalog("diamond-rapids-model")
    with pytest.raises(CpuidError, match="APX and MPX"):
        FpuConfig.from_cpu(replace(cpu, xcr0=cpu.xcr0 | 0x18))
    with pytest.raises(CpuidError, match="SSE"):
        FpuConfig.from_cpu(replace(cpu, xcr0=cpu.xcr0 & ~2))


@pytest.mark.parametrize(
    ("size", "ia32", "expected"),
    [
        *((832, True, 1776), (2432, True, 3376), (2440, True, 3376)),
        *((2688, True, 3632), (2696, True, 3632), (11008, True, 11952)),
        *((2432, False, 2960), (11008, False, 11536)),
    ],
)
def test_minsigstksz(size: int, ia32: bool, expected: int) -> None:
    assert minsigstksz(size, ia32) == expected
    assert 0 <= expected - sigframe_size(size, ia32) < 16


def test_the_frame_without_its_paddings_would_be_too_small() -> None:
    assert sigframe_size(11008) > 736 + 11008 + 4 + 112


def test_a_patched_kernel_keeps_supervisor_components_that_linux_does_not() -> None:
    uintr = mask_of(Component.UINTR)
    patched = FpuConfig.from_cpu(SPR.cpu, out_of_tree=uintr)
    assert patched.xss == SPR.xss | uintr
    assert patched.kernel_default.features == SPR.kernel_default.features | uintr
    assert patched.user_max == SPR.user_max
    assert FpuConfig.from_cpu(ZEN4.cpu, out_of_tree=uintr) == ZEN4
