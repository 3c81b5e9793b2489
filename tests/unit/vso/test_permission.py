import warnings
from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY, USER_SUPPORTED
from fpstate.errors import (
    CpuidError,
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    PermissionFrozen,
    PermissionRequestError,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
)
from fpstate.vso.config import FpuConfig, StateConfig
from fpstate.vso.permission import GUEST_LOCKED, Kind, Permissions, check_host_features
from fpstate.vso.signal_frame import minsigstksz, sigframe_size

TILEDATA = mask_of(Component.TILEDATA)
CET_S = mask_of(Component.CET_S)
SPR = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"))
ZEN4 = FpuConfig.from_cpu(Cpu.catalog("zen4"))


def zen4_without_pku() -> Cpu:
    cpu = Cpu.catalog("zen4")
    return replace(cpu, name="zen4-guest", xcr0=0xE7, features=cpu.features - {"PKU"})


@pytest.mark.parametrize(
    ("name", "user_max", "user_default", "max_without_cet_s", "kernel_max", "host", "guest"),
    [
        ("zen1", 832, 832, 832, 832, 832, 832),
        ("haswell", 832, 832, 832, 832, 832, 832),
        ("zen2", 832, 832, 832, 832, 832, 832),
        ("zen3", 2440, 2440, 856, 880, 856, 880),
        ("zen4", 2440, 2440, 2456, 2480, 2456, 2480),
        ("zen5", 2440, 2440, 2456, 2480, 2456, 2480),
        ("skylake-client", 1088, 1088, 960, 960, 960, 960),
        ("skylake-x", 2688, 2688, 2560, 2560, 2560, 2560),
        ("skylake-sp", 2696, 2696, 2568, 2568, 2568, 2568),
        ("knights-landing", 2688, 2688, 2688, 2688, 2688, 2688),
        ("ice-lake-sp", 2696, 2696, 2440, 2440, 2440, 2440),
        ("tiger-lake", 2696, 2696, 2456, 2480, 2456, 2480),
        ("alder-lake", 2696, 2696, 856, 880, 856, 880),
        ("sapphire-rapids", 11008, 2816, 10752, 10752, 2560, 2560),
        ("granite-rapids", 11008, 2816, 10752, 10752, 2560, 2560),
        ("diamond-rapids-model", 11008, 2816, 10880, 10880, 2688, 2688),
        ("apx-no-amx-model", 2696, 2696, 2584, 2608, 2584, 2608),
    ],
)
def test_sizes_that_linux_derives(
    name: str,
    user_max: int,
    user_default: int,
    max_without_cet_s: int,
    kernel_max: int,
    host: int,
    guest: int,
) -> None:
    config = FpuConfig.from_cpu(Cpu.catalog(name))
    assert (config.user_max.size, config.user_default.size) == (user_max, user_default)
    assert config.kernel_max.size == kernel_max
    assert (config.kernel_default.size, config.guest_default.size) == (host, guest)
    older = FpuConfig.from_cpu(Cpu.catalog(name), guest_supervisor=False)
    assert older.kernel_max.size == max_without_cet_s
    assert older.guest_default == older.kernel_default


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
    assert config.user_max.size == 2816


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


class TestRequests:
    def test_amx_is_granted_and_sizes_follow(self) -> None:
        permissions = Permissions(SPR)
        assert (permissions.kernel_size(Kind.HOST), permissions.user_size(Kind.HOST)) == (2560, 2816)
        permissions.request(Component.TILEDATA)
        assert (permissions.kernel_size(Kind.HOST), permissions.user_size(Kind.HOST)) == (10752, 11008)
        assert permissions.kernel_size(Kind.GUEST) == 2560

    def test_a_grant_keeps_every_other_bit(self) -> None:
        permissions = Permissions(SPR)
        before = {kind: permissions.mask(kind) for kind in Kind}
        for kind in Kind:
            permissions.request(Component.TILEDATA, kind)
            assert permissions.mask(kind) == before[kind] | TILEDATA
        assert permissions.mask(Kind.HOST) & mask_of(Component.CET_U, Component.PASID)
        assert permissions.mask(Kind.GUEST) & CET_S

    def test_reported_permission_has_user_components_alone(self) -> None:
        permissions = Permissions(SPR)
        permissions.freeze_guest()
        assert permissions.user_mask(Kind.HOST) == permissions.user_mask(Kind.GUEST) == 0x202E7
        assert permissions.mask(Kind.GUEST) & ~USER_SUPPORTED
        assert not permissions.mask(Kind.GUEST) & GUEST_LOCKED

    @pytest.mark.parametrize("component", [20, 62, 63, 1000, -1])
    def test_numbers_from_20_on_are_unknown(self, component: int) -> None:
        with pytest.raises(UnknownComponent) as caught:
            Permissions(SPR).request(component)
        assert (caught.value.errno_name, caught.value.component) == ("EINVAL", component)

    @pytest.mark.parametrize("component", sorted(set(range(20)) - {Component.TILEDATA}))
    def test_what_is_not_dynamic_cannot_be_asked_for(self, component: int) -> None:
        with pytest.raises(UnsupportedComponent, match="no dynamic component") as caught:
            Permissions(SPR).request(component)
        assert caught.value.errno_name == "EOPNOTSUPP"

    def test_what_the_processor_lacks_cannot_be_asked_for(self) -> None:
        with pytest.raises(UnsupportedComponent, match="does not exist on zen4"):
            Permissions(ZEN4).request(Component.TILEDATA)

    def test_the_policy_refuses(self) -> None:
        permissions = Permissions(SPR, policy=SPR.kernel_max.features & ~TILEDATA)
        with pytest.raises(PermissionDenied, match="outside the policy") as caught:
            permissions.request(Component.TILEDATA)
        assert caught.value.errno_name == "EPERM"
        assert not permissions.mask(Kind.HOST) & TILEDATA

    def test_guest_permission_freezes_and_host_permission_does_not(self) -> None:
        permissions = Permissions(SPR)
        permissions.freeze_guest()
        with pytest.raises(PermissionFrozen) as caught:
            permissions.request(Component.TILEDATA, Kind.GUEST)
        assert caught.value.errno_name == "EBUSY"
        permissions.request(Component.TILEDATA, Kind.HOST)
        assert permissions.guest_frozen

    def test_what_is_permitted_is_granted_again_though_frozen(self) -> None:
        permissions = Permissions(SPR)
        permissions.request(Component.TILEDATA, Kind.GUEST)
        permissions.freeze_guest()
        permissions.request(Component.TILEDATA, Kind.GUEST)
        assert permissions.guest_frozen
        assert permissions.mask(Kind.GUEST) & TILEDATA

    @pytest.mark.parametrize("size", [1, 8192, 11951])
    def test_a_small_signal_stack_refuses_the_grant(self, size: int) -> None:
        permissions = Permissions(SPR, altstacks=[65536, size])
        with pytest.raises(StackTooSmall, match=f"11952 bytes, one has {size}") as caught:
            permissions.request(Component.TILEDATA)
        assert (caught.value.errno_name, caught.value.size, caught.value.needed) == ("ENOSPC", size, 11952)
        assert not permissions.mask(Kind.HOST) & TILEDATA

    @pytest.mark.parametrize("stacks", [[], [0], [11952], [0, 65536]])
    def test_signal_stacks_that_are_absent_or_large_enough_do_not(self, stacks: list[int]) -> None:
        permissions = Permissions(SPR, altstacks=stacks)
        permissions.request(Component.TILEDATA)
        assert permissions.mask(Kind.HOST) & TILEDATA

    def test_guests_take_no_signals_on_their_state(self) -> None:
        permissions = Permissions(SPR, altstacks=[2048])
        permissions.request(Component.TILEDATA, Kind.GUEST)
        assert permissions.mask(Kind.GUEST) & TILEDATA

    def test_every_refusal_is_a_request_error_with_an_errno(self) -> None:
        refusals = PermissionRequestError.__subclasses__()
        assert {refusal.errno_name for refusal in refusals} == {
            *("EINVAL", "EOPNOTSUPP", "EPERM", "EBUSY", "ENOSPC"),
        }


def test_a_policy_holds_contexts_to_fewer_components_than_the_default() -> None:
    permissions = Permissions(ZEN4, policy=LEGACY)
    assert permissions.mask(Kind.HOST) == permissions.mask(Kind.GUEST) == LEGACY
    assert permissions.kernel_size(Kind.HOST) == 576


def test_a_policy_gives_nothing_that_the_processor_lacks() -> None:
    assert Permissions(ZEN4, policy=(1 << 63) - 1).mask(Kind.HOST) == ZEN4.kernel_default.features


class TestGuestOnlyComponents:
    def test_they_are_refused_in_a_host_with_a_warning_of_their_own(self) -> None:
        with (
            pytest.warns(GuestOnlyComponentWarning, match="CET_S"),
            pytest.raises(GuestOnlyComponent) as caught,
        ):
            check_host_features(ZEN4.guest_default.features)
        assert caught.value.component == Component.CET_S

    def test_the_refusal_holds_where_warnings_are_errors_or_ignored(self) -> None:
        for action in ("error", "ignore"):
            with warnings.catch_warnings():
                warnings.simplefilter(action)
                with pytest.raises(GuestOnlyComponent):
                    check_host_features(CET_S)

    def test_host_components_pass(self) -> None:
        check_host_features(ZEN4.kernel_default.features)
        check_host_features(ZEN4.kernel_max.features & ~CET_S)
