"""Loads are foretold, refused before the vCPU is touched, done in the kernel's order, and read back.

The vCPUs here are modelled: processors with AMX, PKRU and CET, which no machine of ours has. On the kernel's own
KVM the same functions run in tests/hardware/test_kvm_state.py.
"""

from __future__ import annotations

import dataclasses

import pytest
from modelled_kvm import PKRU, XFD, XSS, ModelledVcpu

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import AMX, AVX512, USER_DYNAMIC, components_in
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.prediction import Action, Outcome, predict_load
from fpstate.engine.kvm.reset import DEBUG, DEBUG_INITIAL, reset, reset_components, survivors
from fpstate.engine.kvm.transfer import load, save
from fpstate.errors import KvmError, LoadMismatch, LoadRefused
from fpstate.image import Image
from fpstate.source.guest_state import PKRU_OS_DEFAULT, GuestState, PkruPolicy
from fpstate.testing import random_image

SPR, ZEN4, SKX = (Cpu.catalog(name) for name in ("sapphire-rapids", "zen4", "skylake-sp"))
TILEDATA = mask_of(Component.TILEDATA)
CET = mask_of(Component.CET_U, Component.CET_S)
HASWELL = Cpu.catalog("haswell")


def whole(cpu: Cpu, seed: int = 1, *, present: int | None = None, **fields) -> GuestState:
    layout = Layout.standard(cpu)
    image = random_image(layout, seed, present=present, mxcsr_mask=cpu.mxcsr_mask)
    return GuestState(**{"image": image, "xcr0": cpu.user_mask, "cpu": cpu} | fields)


def there(vcpu: ModelledVcpu) -> Destination:
    return Destination.of(vcpu, cpu=vcpu.cpu)


def do_load(vcpu: ModelledVcpu, state: GuestState, **options):
    return load(vcpu, state, destination=there(vcpu), **options)


def actions(report) -> dict[str, Action]:
    return {each.name: each.action for each in report.components}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("cpu", [SPR, ZEN4, SKX, HASWELL], ids=lambda cpu: cpu.name)
def test_a_state_of_the_same_processor_reads_back_equal(cpu, seed):
    vcpu, state = ModelledVcpu(cpu), whole(cpu, seed)
    do_load(vcpu, whole(cpu, seed + 1000))
    report = do_load(vcpu, state)
    assert report.exact
    assert save(vcpu, destination=there(vcpu)).image == state.image
    assert vcpu.xcr0() == state.xcr0


def test_the_order_is_that_of_the_kernel():
    vcpu = ModelledVcpu(SPR)
    do_load(vcpu, whole(SPR, present=3, xfd=USER_DYNAMIC))
    assert vcpu.calls == ["KVM_SET_XCRS", f"MSR {XFD:#x}", "KVM_SET_XSAVE"]


def test_tiles_load_after_an_xfd_that_held_them_back():
    vcpu, tiles = ModelledVcpu(SPR), whole(SPR, present=SPR.user_mask)
    do_load(vcpu, whole(SPR, present=3, xfd=USER_DYNAMIC))
    do_load(vcpu, tiles)
    assert save(vcpu, destination=there(vcpu)).image == tiles.image


def test_another_processors_offsets_are_converted():
    mask = 0xE7
    image = random_image(Layout.standard(ZEN4, mask), 3, present=mask)
    vcpu = ModelledVcpu(SPR)
    report = do_load(vcpu, GuestState(image, mask, ZEN4))
    assert report.exact
    assert save(vcpu, destination=there(vcpu)).image == image


def test_compacted_states_are_converted():
    image = random_image(Layout.compacted(SPR), 3, present=SPR.user_mask)
    vcpu = ModelledVcpu(SPR)
    do_load(vcpu, GuestState(image, SPR.user_mask, SPR))
    assert save(vcpu, destination=there(vcpu)).image == image


def test_components_that_the_vcpu_lacks_are_refused_where_they_are_in_use_and_nothing_is_touched():
    vcpu = ModelledVcpu(SPR, xcr0=SPR.user_mask & ~AMX)
    do_load(vcpu, whole(SPR, present=7, xcr0=0x2E7))
    vcpu.calls.clear()
    before = vcpu.xsave(), vcpu.xcr0()
    with pytest.raises(LoadRefused, match=r"loaded with loss of TILECFG\|TILEDATA") as caught:
        do_load(vcpu, whole(SPR, present=SPR.user_mask))
    assert caught.value.prediction.outcome is Outcome.LOSS
    assert caught.value.prediction.lost == AMX
    assert (vcpu.calls, (vcpu.xsave(), vcpu.xcr0())) == ([], before)


def test_they_are_stripped_where_they_are_initial_and_the_report_says_so():
    vcpu = ModelledVcpu(SPR, xcr0=SPR.user_mask & ~AMX)
    report = do_load(vcpu, whole(SPR, present=SPR.user_mask & ~AMX))
    assert report.prediction.outcome is Outcome.SUSPICIOUS
    assert "XCR0 0x602e7 becomes 0x2e7" in report.prediction.reasons[0]
    assert actions(report)["TILEDATA"] is Action.STRIPPED
    assert vcpu.xcr0() == 0x2E7


def test_a_loss_that_is_named_is_allowed_and_reported():
    vcpu = ModelledVcpu(SPR, xcr0=SPR.user_mask & ~AMX)
    state = whole(SPR, present=SPR.user_mask)
    with pytest.raises(LoadRefused):
        do_load(vcpu, state, allow_loss=TILEDATA)
    report = do_load(vcpu, state, allow_loss=AMX)
    assert {name for name, action in actions(report).items() if action is Action.DROPPED} == {
        "TILECFG",
        "TILEDATA",
    }
    assert report.exact


def test_a_loss_that_is_allowed_drops_nothing_that_fits():
    vcpu, state = ModelledVcpu(SPR), whole(SPR, present=SPR.user_mask)
    report = do_load(vcpu, state, allow_loss=AMX | AVX512)
    assert Action.DROPPED not in actions(report).values()
    assert save(vcpu, destination=there(vcpu)).image == state.image


def test_mxcsr_bits_that_the_host_lacks_are_a_loss():
    image = Image.initial(Layout.standard(ZEN4, 7))
    image.registers["mxcsr"] = 0x21F80
    vcpu = ModelledVcpu(SPR)
    with pytest.raises(LoadRefused, match="mxcsr"):
        do_load(vcpu, GuestState(image, 7, ZEN4))
    do_load(vcpu, GuestState(image, 7, ZEN4), allow_loss=2)
    assert save(vcpu, destination=there(vcpu)).image.registers["mxcsr"] == 0x1F80


def test_an_mxcsr_that_avx_alone_would_carry_arrives():
    image = Image.initial(Layout.standard(SPR, 7))
    image.registers["ymm0h"] = 1
    image.store.view[24:28] = (0x9FC0).to_bytes(4, "little")
    vcpu = ModelledVcpu(SPR)
    assert do_load(vcpu, GuestState(image, 7, SPR)).exact
    assert save(vcpu, destination=there(vcpu)).image.registers["mxcsr"] == 0x9FC0


@pytest.mark.parametrize(
    ("policy", "value", "action"),
    [
        (PkruPolicy.INITIAL, 0, Action.SET),
        (PkruPolicy.OS_DEFAULT, PKRU_OS_DEFAULT, Action.SET),
        (PkruPolicy.KEEP, 0xC, Action.KEPT),
    ],
)
def test_what_an_absent_pkru_becomes_is_the_policys_to_say(policy, value, action):
    vcpu = ModelledVcpu(SPR)
    earlier = Image.initial(Layout.standard(SPR))
    earlier.registers["pkru"] = 0xC
    do_load(vcpu, GuestState(earlier, SPR.user_mask, SPR))
    report = do_load(vcpu, whole(SPR, present=7, pkru=policy))
    assert actions(report)["PKRU"] is action
    assert save(vcpu, destination=there(vcpu)).image.registers["pkru"] == value


def test_a_pkru_that_is_stated_is_loaded_whatever_the_policy():
    for policy in PkruPolicy:
        vcpu, state = ModelledVcpu(SPR), whole(SPR, present=PKRU | 3, pkru=policy)
        do_load(vcpu, state)
        assert save(vcpu, destination=there(vcpu)).image == state.image


def test_the_hosts_default_pkru_in_a_guest_without_pkru_is_stripped():
    image = Image.initial(Layout.standard(SPR))
    image.registers["pkru"] = PKRU_OS_DEFAULT
    state = GuestState(image, 7, SPR)
    vcpu = ModelledVcpu(SPR, xcr0=7)
    assert actions(do_load(vcpu, state))["PKRU"] is Action.STRIPPED
    image.registers["pkru"] = 0x44
    with pytest.raises(LoadRefused, match="GS004"):
        do_load(vcpu, GuestState(image, 7, SPR))
    assert actions(do_load(vcpu, GuestState(image, 7, SPR), allow_loss=PKRU))["PKRU"] is Action.DROPPED


def supervisor_state() -> GuestState:
    image = Image.initial(Layout.compacted(SPR, SPR.user_mask | CET))
    image.registers["u_cet"] = 3
    image.registers["pl3_ssp"] = 0x7FFF_0000_1000
    image.registers["xmm5"] = 5
    return GuestState(image, SPR.user_mask, SPR, xss=CET)


def test_supervisor_components_go_by_msrs_and_come_back():
    vcpu, state = ModelledVcpu(SPR, xss=CET), supervisor_state()
    report = do_load(vcpu, state)
    assert actions(report)["CET_U"] is Action.LOADED
    assert vcpu.msrs([XSS, 0x6A0]) == {XSS: CET, 0x6A0: 3}
    back = save(vcpu, destination=there(vcpu))
    assert back.image == state.image
    back.check()
    do_load(vcpu, whole(SPR, present=7))
    assert not any(vcpu.msrs([XSS, 0x6A0, 0x6A7]).values())


def test_supervisor_components_are_refused_without_xss_and_by_vcpus_without_them():
    with pytest.raises(LoadRefused, match="GS005"):
        do_load(ModelledVcpu(SPR, xss=CET), dataclasses.replace(supervisor_state(), xss=0))
    with pytest.raises(LoadRefused, match="loss of CET_U"):
        do_load(ModelledVcpu(SPR), supervisor_state())


def test_data_that_is_not_stated_is_a_doubt():
    image = random_image(Layout.standard(SPR), 1, present=7)
    image.store.view[512:520] = (1).to_bytes(8, "little")
    prediction = predict_load(GuestState(image, SPR.user_mask, SPR), there(ModelledVcpu(SPR)))
    assert str(prediction) == "suspicious"
    assert "XS101" in {finding.id for finding in prediction.findings}


def test_an_illegal_state_is_rejected_before_the_vcpu_is_touched():
    vcpu = ModelledVcpu(SPR)
    with pytest.raises(LoadRefused, match=r"rejected \(EINVAL\): GS001"):
        do_load(vcpu, whole(SPR, xcr0=SPR.user_mask & ~2))
    assert vcpu.calls == []


def test_a_load_that_fails_half_way_leaves_what_was_there():
    vcpu = ModelledVcpu(SPR)
    do_load(vcpu, whole(SPR, 1, present=7))
    before = vcpu.xsave(), vcpu.xcr0()
    vcpu.fails = "KVM_SET_XSAVE"
    with pytest.raises(KvmError):
        do_load(vcpu, whole(SPR, 2, present=0xE7, xcr0=0x2E7))
    assert (vcpu.xsave(), vcpu.xcr0()) == before


@pytest.mark.parametrize("component", [*components_in(SPR.user_mask & ~PKRU & ~mask_of(Component.TILECFG))])
def test_a_kernel_that_drops_a_component_without_a_word_is_caught_by_name(component):
    vcpu, state = ModelledVcpu(SPR), whole(SPR, present=SPR.user_mask)
    vcpu.drops = 1 << component
    with pytest.raises(LoadMismatch) as caught:
        do_load(vcpu, state)
    wrong = {each.name for each in caught.value.report.components if each.differences}
    assert Component(component).name in wrong


@pytest.mark.parametrize("size", [4096, 11008, 16384])
def test_payloads_have_the_size_that_the_capability_says_and_are_never_cut(size):
    vcpu = ModelledVcpu(SPR, size=size)
    state = whole(SPR, present=SPR.user_mask)
    prediction = predict_load(state, there(vcpu))
    if size < vcpu.layout.size:
        assert prediction.payload is None
        with pytest.raises(LoadRefused, match="11008 bytes, and the vCPU's buffer has 4096"):
            do_load(vcpu, state)
        return
    assert prediction.payload is not None
    assert len(prediction.payload) == size
    assert do_load(vcpu, state).exact


def test_a_reset_initialises_pkru_and_xfd_and_shadow_stacks_too():
    vcpu = ModelledVcpu(SPR, xss=CET)
    do_load(vcpu, supervisor_state())
    do_load(vcpu, whole(SPR, present=SPR.user_mask))
    vcpu.set_msrs({0x6A0: 3, XSS: CET})
    vcpu.set_regs(bytearray(range(144)))
    reset(vcpu, destination=there(vcpu))
    assert survivors(vcpu, destination=there(vcpu)) == []
    assert DEBUG.unpack_from(vcpu.debugregs()) == DEBUG_INITIAL


def test_a_reset_that_states_nothing_leaves_pkru_and_is_caught():
    vcpu = ModelledVcpu(SPR)
    state = Image.initial(Layout.standard(SPR))
    state.registers["pkru"] = 0xC
    do_load(vcpu, GuestState(state, SPR.user_mask, SPR))
    vcpu.set_xsave(bytearray(Image.initial(vcpu.layout).to_bytes().ljust(vcpu.xsave_size, b"\0")))
    assert "pkru" in {each.name for each in survivors(vcpu, destination=there(vcpu))}
    reset_components(vcpu, there(vcpu))
    assert "pkru" not in {each.name for each in survivors(vcpu, destination=there(vcpu))}


def with_tile_palette(palette: int) -> GuestState:
    state = whole(SPR, present=SPR.user_mask)
    image = state.image.copy()
    image.registers["tilecfg"] = palette | 0x40 << 128 | 0x10 << 384
    return dataclasses.replace(state, image=image)


def test_an_illegal_tile_configuration_is_refused_with_its_reason():
    """KVM would take it, and read it back; the guest would have no configuration."""
    vcpu = ModelledVcpu(SPR)
    assert predict_load(with_tile_palette(1), there(vcpu)).outcome is Outcome.LOADED
    with pytest.raises(LoadRefused, match="XS034 there is no palette 2") as caught:
        do_load(vcpu, with_tile_palette(2))
    assert vcpu.calls == []
    assert caught.value.prediction.outcome is Outcome.LOSS
    assert [each.id for each in caught.value.prediction.findings] == ["XS034"]
    assert "palette 1" in caught.value.help


def test_an_illegal_tile_configuration_that_may_be_lost_is_left_out():
    vcpu, state = ModelledVcpu(SPR), with_tile_palette(2)
    report = do_load(vcpu, state, allow_loss=mask_of(Component.TILECFG))
    found = save(vcpu, destination=there(vcpu)).image.registers
    assert report.exact
    assert actions(report)["TILECFG"] is Action.DROPPED
    assert (found["tilecfg"], found["tmm3"]) == (0, state.image.registers["tmm3"])
    assert vcpu.xcr0() == SPR.user_mask


def test_half_of_what_goes_together_may_not_be_lost_alone():
    there = Destination(ZEN4, kvm_xcr0=0x2E7, guest_xcr0=0x2E7)
    found = predict_load(with_tile_palette(1), there, allow_loss=mask_of(Component.TILECFG))
    assert (found.outcome, found.lost) == (Outcome.LOSS, TILEDATA)
