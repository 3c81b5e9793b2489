"""Tiles and the rules: illegal configurations, permission, XFD, KVM, frames that are cut short."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import USER_DYNAMIC
from fpstate.image.consumer import WHOLE_IMAGE, Consumer, Target
from fpstate.image.rules import check, predict
from fpstate.image.tile import configuration_problem, is_loaded, restore_defect, use_defects
from fpstate.testing.case import clean_case

TILECFG, TILES = mask_of(Component.TILECFG), mask_of(Component.TILEDATA)
EMERALD = "emerald-rapids"
TAKERS = (*WHOLE_IMAGE, Consumer.SIGRETURN32)
LEGAL = clean_case(Consumer.XRSTOR, EMERALD)
CONFIGURATION = bytes(LEGAL.data[LEGAL.place(Component.TILECFG)])


def configured(*changes: tuple[int, int]) -> bytes:
    data = bytearray(CONFIGURATION)
    for offset, value in changes:
        data[offset] = value
    return bytes(data)


ILLEGAL = {
    "palette 2": ([(0, 2)], 0, 2, 1),
    "palette 80H": ([(0, 0x80)], 0, 0x80, 1),
    "palette 0 with tiles": ([(0, 0)], 16, 64, 0),
    "reserved byte 15": ([(15, 1)], 15, 1, 0),
    "reserved byte 32": ([(32, 1)], 32, 1, 0),
    "reserved byte 63": ([(63, 0xFF)], 63, 0xFF, 0),
    "17 rows of tile 7": ([(55, 17)], 55, 17, 16),
    "65 bytes of tile 3": ([(22, 65)], 22, 65, 64),
    "4000H bytes of tile 0": ([(16, 0), (17, 0x40)], 16, 0x4000, 64),
    "no rows of tile 1": ([(49, 0)], 18, 64, 0),
    "no bytes of tile 1": ([(18, 0)], 49, 16, 0),
}
"""Changes to a legal configuration, and the field that is found: offset, value, nearest legal value."""
STRANGE_BUT_LEGAL = {
    "as it is": [],
    "start_row 255": [(1, 255)],
    "3 bytes a row": [(16, 3)],
    "tile 0 without rows and bytes": [(16, 0), (48, 0)],
}


@pytest.mark.parametrize(("changes", "offset", "found", "expected"), ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_configuration_says_which_field_it_is(changes, offset, found, expected):
    data = configured(*changes)
    defect = restore_defect(data)
    assert not is_loaded(data)
    assert (defect.offset, defect.found, defect.expected) == (offset, found, expected)
    assert bool(configuration_problem(data)) is bool(data[0])  # LDTILECFG takes palette 0


@pytest.mark.parametrize("changes", STRANGE_BUT_LEGAL.values(), ids=STRANGE_BUT_LEGAL)
def test_a_legal_configuration_has_no_defect(changes):
    data = configured(*changes)
    assert is_loaded(data)
    assert restore_defect(data) is None
    assert configuration_problem(data) == ""


def test_zeros_are_the_initial_configuration():
    assert restore_defect(bytes(64)) is None
    assert not is_loaded(bytes(64))


@pytest.mark.parametrize("changes", [each[0] for each in ILLEGAL.values()], ids=ILLEGAL)
@pytest.mark.parametrize("consumer", TAKERS, ids=lambda each: each.value)
def test_an_illegal_configuration_is_taken_by_everyone_and_becomes_initial(consumer, changes):
    case = clean_case(consumer, EMERALD)
    whole = case.verdict()
    assert whole.loaded & (TILECFG | TILES) == TILECFG | TILES
    case.data[case.place(Component.TILECFG)] = configured(*changes)
    verdict = case.verdict()
    assert verdict.accepted
    assert verdict.loaded == whole.loaded & ~TILECFG
    assert verdict.initialised == whole.initialised | TILECFG
    assert verdict.lost == TILECFG
    assert str(verdict) == "loaded with loss of TILECFG"
    if consumer in (Consumer.PTRACE, Consumer.KVM):
        assert verdict.reported == whole.reported
        assert verdict.reported & TILECFG


@pytest.mark.parametrize(("changes", "offset", "found", "expected"), ILLEGAL.values(), ids=ILLEGAL)
def test_the_finding_names_the_byte_of_the_image(changes, offset, found, expected):
    for consumer in (Consumer.XRSTOR, Consumer.SIGRETURN32):
        case = clean_case(consumer, EMERALD)
        place = case.place(Component.TILECFG)
        case.data[place] = configured(*changes)
        (finding,) = (each for each in case.findings() if each.id == "XS034")
        assert (finding.offset, finding.found, finding.expected) == (place.start + offset, found, expected)
        assert finding.component == Component.TILECFG


def test_a_configuration_that_is_not_asked_for_is_not_looked_at():
    case = clean_case(Consumer.XRSTOR, EMERALD)
    case.data[case.place(Component.TILECFG)] = configured((0, 2))
    case.target = case.target.with_(requested=~TILECFG & (1 << 64) - 1)
    assert case.verdict().kept == TILECFG
    assert "XS034" not in {finding.id for finding in case.findings()}


def test_rows_that_are_no_multiple_of_4_and_a_start_row_past_the_end_are_found_tile_by_tile():
    data = configured((1, 9), (18, 62), (50, 9), (51, 10))
    assert [(each.tile, each.offset, each.found) for each in use_defects(data)] == [(1, 18, 62), (2, 1, 9)]
    assert use_defects(configured((1, 15))) == []
    assert len(use_defects(configured((1, 16)))) == 8
    case = clean_case(Consumer.PTRACE, EMERALD)
    case.data[case.place(Component.TILECFG)] = data
    assert [each.id for each in case.findings()] == ["XS114", "XS114"]
    assert case.verdict().loaded & TILECFG


def target(permitted: int, used: int = USER_DYNAMIC) -> Target:
    return Target.from_cpu(Cpu.catalog(EMERALD), permitted=permitted, used=used)


def test_a_task_has_no_permission_or_has_not_used_it_or_has():
    none, unused, used = target(0), target(TILES, 0), target(TILES)
    assert (none.user_xfeatures, none.xfd, none.expandable) == (0x202E7, TILES, 0)
    assert (unused.user_xfeatures, unused.xfd, unused.expandable) == (0x202E7, TILES, TILES)
    assert (used.user_xfeatures, used.xfd, used.expandable) == (0x602E7, 0, 0)
    assert none.xcr0 == unused.xcr0 == used.xcr0 == 0x602E7


def test_xfd_refuses_tiles_where_there_is_no_permission_and_linux_makes_room_where_there_is():
    data = clean_case(Consumer.XRSTOR, EMERALD).data
    refused = predict(data, Consumer.XRSTOR, target(0))
    assert (refused.answer, [each.id for each in refused.refusals]) == ("#NM", ["XS018"])
    assert refused.kept == 0x602E7
    assert "ARCH_REQ_XCOMP_PERM" in refused.refusals[0].help
    assert "SIGILL" in refused.refusals[0].message
    assert refused.refusals[0].component == Component.TILEDATA
    for able in (target(TILES, 0), target(TILES)):
        assert predict(data, Consumer.XRSTOR, able).loaded == 0x602E7
    data[512:520] = (0x202E7).to_bytes(8, "little")
    absent = predict(data, Consumer.XRSTOR, target(0))
    assert (absent.accepted, absent.initialised) == (True, TILES)


def test_ptrace_takes_tiles_once_they_were_used():
    data = clean_case(Consumer.PTRACE, EMERALD).data
    assert [
        predict(data, Consumer.PTRACE, each).answer for each in (target(0), target(TILES, 0), target(TILES))
    ] == [
        "EINVAL",
        "EINVAL",
        "",
    ]


def test_kvm_offers_no_tilecfg_without_tiles():
    assert target(0).kvm_xcr0 == 0x2E7
    assert target(TILES).kvm_xcr0 == 0x602E7
    for bits in (TILECFG, TILES, TILECFG | TILES):
        case = clean_case(Consumer.KVM, EMERALD, permitted=0)
        assert case.verdict().accepted
        case.put(512, case.word(512) | bits)
        verdict = case.verdict()
        assert (verdict.answer, [each.id for each in verdict.refusals]) == ("EINVAL", ["XS011"])


def test_a_frame_that_was_made_smaller_and_still_states_tiles_loads_what_lies_behind_it():
    case = clean_case(Consumer.SIGRETURN, EMERALD)
    case.put(480, 2816, 4)
    case.put(2816, 0x46505845, 4)
    verdict = case.verdict()
    assert not verdict.fx_only
    assert verdict.loaded & TILES
    (finding,) = (each for each in case.findings() if each.id == "XS033")
    assert finding.component == Component.TILEDATA
    assert (finding.found, finding.expected) == (2816, 11008)


def test_unused_tiles_in_a_frame_are_left_over_and_not_lost():
    case = clean_case(Consumer.SIGRETURN, EMERALD)
    for component in (Component.TILECFG, Component.TILEDATA):
        case.forget(component, wipe=False)
    found = check(case.data, Consumer.SIGRETURN, case.target)
    assert [(each.id, each.component) for each in found] == [("XS102", 17), ("XS102", 18)]
    assert all("what the stack had" in each.message for each in found)


@pytest.mark.parametrize("size", [11008, 2816], ids=["of a thread with tiles", "from before its first tile"])
def test_a_compacted_header_is_told_of_in_a_frame_of_either_size(size):
    """A frame from before the first use of tiles is smaller than the task's own are now."""
    case = clean_case(Consumer.SIGRETURN, EMERALD)
    mask = 0x602E7 if size == 11008 else 0x202E7
    case.data[size : size + 4] = case.data[-4:]
    case.put(480, size, 4)
    case.put(472, mask)
    case.put(512, mask)
    assert "XS035" not in {each.id for each in case.findings()}
    case.put(520, 1 << 63 | mask)
    (finding,) = (each for each in case.findings() if each.id == "XS035")
    assert (finding.offset, finding.expected) == (520, 0)


DISBELIEVED = {
    "magic1": (464, 0, 464, 0, 0x46505853),
    "magic2": (11008, 0, 11008, 0, 0x46505845),
    "xstate_size": (480, 11072, 468, 11012, 11076),
    "extended_size": (468, 11000, 468, 11000, 11012),
    "too small": (480, 512, 480, 512, 576),
}
"""A word of a frame: its offset and another value, and what is to be found: offset, value, the right one."""


@pytest.mark.parametrize(
    ("at", "value", "offset", "found", "expected"), DISBELIEVED.values(), ids=DISBELIEVED
)
def test_what_opens_every_key_is_the_word_that_is_not_believed(at, value, offset, found, expected):
    for consumer in (Consumer.SIGRETURN, Consumer.SIGRETURN32):
        case = clean_case(consumer, EMERALD)
        case.put(at, value, 4)
        (opened,) = (each for each in case.findings() if each.id == "XS028")
        assert (opened.offset, opened.found, opened.expected) == (case.origin + offset, found, expected)
        assert case.verdict().pkru == 0


def test_a_wrong_second_magic_word_is_not_taken_for_left_over_tiles():
    case = clean_case(Consumer.SIGRETURN32, EMERALD)
    case.put(472, 0x202E7)
    case.put(512, 0x202E7)
    case.put(468, 2820, 4)
    case.put(480, 2816, 4)
    case.data[case.origin + 2816 :] = b"\1\2\3\4"
    assert [each.id for each in case.findings()] == ["XS021", "XS028"]


@pytest.mark.parametrize("consumer", [Consumer.SIGRETURN, Consumer.SIGRETURN32], ids=lambda each: each.value)
def test_a_frame_of_another_processor_loses_what_this_one_has_not_got_too(consumer):
    case = clean_case(consumer, EMERALD)
    assert case.verdict().lost == 0
    case.target = Target.from_cpu(Cpu.catalog("zen4"))
    verdict = case.verdict()
    assert (verdict.fx_only, verdict.lost) == (True, 0x602E4)
    assert "TILECFG|TILEDATA" in str(verdict)
