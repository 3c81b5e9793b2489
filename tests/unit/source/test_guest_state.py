"""A guest state is whole, or it says in what it is not."""

from __future__ import annotations

import dataclasses

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.record import leaves_of
from fpstate.errors import IncompleteState
from fpstate.image import Image
from fpstate.source.guest_state import PKRU_OS_DEFAULT, GuestState, PkruPolicy
from fpstate.testing import random_image

SPR = Cpu.catalog("sapphire-rapids")
USER = SPR.user_mask
CET = mask_of(Component.CET_U, Component.CET_S)
TILES = mask_of(Component.TILECFG, Component.TILEDATA)


def state(mask: int = USER, *, compacted: bool = False, present: int | None = None, **fields) -> GuestState:
    layout = Layout.compacted(SPR, mask) if compacted else Layout.standard(SPR, mask)
    image = random_image(layout, 7, present=layout.mask if present is None else present)
    return GuestState(**{"image": image, "xcr0": mask & USER, "cpu": SPR} | fields)


def ids(state: GuestState) -> set[str]:
    return {finding.id for finding in state.findings()}


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_a_state_of_everything_that_a_processor_has_is_whole(name):
    cpu = Cpu.catalog(name)
    GuestState.initial(cpu).check()
    if cpu.has("XSAVES"):
        mask = cpu.user_mask | cpu.supervisor_mask
        image = random_image(Layout.compacted(cpu, mask), 3, mxcsr_mask=cpu.mxcsr_mask)
        GuestState(image, cpu.user_mask, cpu, xss=cpu.supervisor_mask).check()


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_a_processor_goes_into_leaves_and_comes_back(name):
    cpu = Cpu.catalog(name)
    back = Cpu.from_cpuid(
        leaves_of(cpu),
        name=name,
        source=cpu.source,
        mxcsr_mask=cpu.mxcsr_mask,
        provenance=cpu.provenance,
    )
    assert back == cpu


def test_the_image_is_kept_as_it_was():
    image = random_image(Layout.standard(SPR), 1)
    kept = GuestState(image, USER, SPR)
    before = kept.image.to_bytes()
    image.registers["xmm0"] = 42
    assert kept.image.to_bytes() == before
    assert kept.image.readonly


@pytest.mark.parametrize(
    ("xcr0", "reason"),
    [
        (USER & ~1, "bit 0"),
        (USER | 1 << 40, "not supported"),
        (USER & ~mask_of(Component.SSE), "AVX needs SSE"),
        (USER & ~mask_of(Component.OPMASK), "AVX-512 needs"),
        (USER & ~mask_of(Component.AVX), "AVX-512 needs"),
        (USER & ~mask_of(Component.TILECFG), "TILECFG and TILEDATA"),
    ],
)
def test_an_xcr0_that_xsetbv_refuses_is_no_whole_state(xcr0, reason):
    found = state(present=3, xcr0=xcr0).findings()
    assert [each.id for each in found] == ["GS001"]
    assert reason in found[0].message


def test_half_of_mpx_is_refused():
    cpu = Cpu.catalog("skylake-client")
    image = Image.initial(Layout.standard(cpu))
    half = cpu.user_mask & ~mask_of(Component.BNDCSR)
    assert ids(GuestState(image, half, cpu)) == {"GS001"}


def test_xss_bits_that_the_processor_lacks_are_refused():
    assert ids(state(xss=1 << 20)) == {"GS002"}


@pytest.mark.parametrize("where", [512, 520, 528, 575])
def test_a_header_that_contradicts_its_layout_is_refused(where):
    image = state().image
    data = bytearray(image.to_bytes())
    data[where] ^= 1 << 3
    assert "GS003" in ids(GuestState(Image(data, image.layout), USER, SPR))


def test_a_component_outside_xcr0_is_refused():
    found = state(xcr0=7).findings()
    assert {each.id for each in found} == {"GS004"}
    assert "OPMASK" in found[0].message


def test_supervisor_components_without_xss_are_refused():
    whole = state(USER | CET, compacted=True, xss=CET)
    whole.check()
    lacking = dataclasses.replace(whole, xss=0)
    with pytest.raises(IncompleteState, match=r"CET_U\|CET_S, IA32_XSS is 0x0") as caught:
        lacking.check()
    assert caught.value.exit_code == 1
    assert {each.id for each in caught.value.findings} == {"GS005"}
    assert "0DA0H" in caught.value.help


def test_a_compacted_image_with_room_for_a_supervisor_component_needs_its_xss_bit_too():
    assert ids(state(USER | CET, compacted=True, present=3, xss=0)) == {"GS005"}


def test_xfd_names_only_what_can_be_held_back():
    assert ids(state(present=3, xfd=mask_of(Component.AVX))) == {"GS006"}
    assert ids(state(present=3, xfd_err=mask_of(Component.TILECFG))) == {"GS006"}
    assert not ids(state(present=3, xfd=mask_of(Component.TILEDATA)))


def test_a_component_that_xfd_holds_back_cannot_be_stated():
    found = state(xfd=mask_of(Component.TILEDATA)).findings()
    assert [each.id for each in found] == ["GS007"]
    assert found[0].component == Component.TILEDATA


def test_reserved_mxcsr_bits_are_refused_where_a_load_reads_them():
    image = state(present=3).image
    data = bytearray(image.to_bytes())
    data[26] = 0xFF
    assert ids(GuestState(Image(data, image.layout), USER, SPR)) == {"GS008"}


def test_another_processors_layout_is_refused():
    zen = Cpu.catalog("zen4")
    image = random_image(Layout.standard(zen, 0xE7), 1)
    found = GuestState(image, 0xE7, SPR).findings()
    assert {each.id for each in found} == {"GS009"}
    assert "OPMASK lies at 832" in found[0].message


def test_every_pkru_policy_says_what_it_writes():
    assert {policy: policy.value_written for policy in PkruPolicy} == {
        PkruPolicy.INITIAL: 0,
        PkruPolicy.KEEP: None,
        PkruPolicy.OS_DEFAULT: PKRU_OS_DEFAULT,
    }
