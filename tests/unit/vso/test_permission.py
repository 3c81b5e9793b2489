import warnings

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import LEGACY, USER_SUPPORTED
from fpstate.errors import (
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    PermissionFrozen,
    PermissionRequestError,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
)
from fpstate.vso.config import FpuConfig
from fpstate.vso.permission import GUEST_LOCKED, AltstackRefused, Kind, Permissions, check_host_features

TILEDATA = mask_of(Component.TILEDATA)
CET_S = mask_of(Component.CET_S)
SPR = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"))
ZEN4 = FpuConfig.from_cpu(Cpu.catalog("zen4"))


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

    @pytest.mark.parametrize(("size", "taken"), [(0, True), (11836, False), (11837, True), (65536, True)])
    def test_with_permission_a_signal_stack_has_to_exceed_the_frame(self, size: int, taken: bool) -> None:
        """I7: permission and signal stacks are checked against each other, whichever comes first (B16)."""
        permissions = Permissions(SPR)
        permissions.set_altstack(2048)
        permissions.set_altstack(0, earlier=2048)
        permissions.request(Component.TILEDATA)
        if taken:
            permissions.set_altstack(size)
            return
        with pytest.raises(AltstackRefused, match="11837 are needed") as caught:
            permissions.set_altstack(size)
        assert (caught.value.errno_name, caught.value.needed) == ("ENOMEM", 11837)
        assert size not in permissions.altstacks

    def test_no_signal_stack_is_smaller_than_minsigstksz(self) -> None:
        with pytest.raises(AltstackRefused, match="2048 are needed"):
            Permissions(SPR).set_altstack(2047)

    def test_a_stack_that_was_replaced_no_longer_counts(self) -> None:
        permissions = Permissions(SPR)
        permissions.set_altstack(2048)
        permissions.set_altstack(65536, earlier=2048)
        assert permissions.altstacks == [65536]
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
