"""The full and the abridged tag word."""

import pytest

from fpstate.image import Tag, abridged_tag, full_tag
from fpstate.image.tag import content_tag

INTEGER = 1 << 63
ONE = 0x3FFF << 64 | INTEGER
PI = 0x4000_C90FDAA22168C235

# SDM Vol.1 8.1.7, and twd_fxsr_to_i387 in Linux: what a register's content makes of its tag.
CONTENTS = [
    (0, Tag.ZERO),
    (1 << 79, Tag.ZERO),
    (1, Tag.SPECIAL),
    (INTEGER, Tag.SPECIAL),
    (ONE, Tag.VALID),
    (1 << 79 | ONE, Tag.VALID),
    (0x3FFF << 64, Tag.SPECIAL),
    (0x3FFF << 64 | 1, Tag.SPECIAL),
    (0x7FFF << 64 | INTEGER, Tag.SPECIAL),
    (0x7FFF << 64, Tag.SPECIAL),
    (0xFFFF << 64 | 3 << 62, Tag.SPECIAL),
]


@pytest.mark.parametrize(("bits", "tag"), CONTENTS)
def test_the_tag_of_a_register_follows_from_its_content(bits: int, tag: Tag) -> None:
    assert content_tag(bits) is tag


def test_empty_is_zero_abridged_and_all_ones_in_full() -> None:
    assert full_tag(0x00, 0, [0] * 8) == 0xFFFF
    assert abridged_tag(0xFFFF) == 0x00
    assert full_tag(0xFF, 0, [0] * 8) == 0x5555
    assert abridged_tag(0x5555) == 0xFF


def test_after_fld1_and_fldpi_the_slots_are_in_stack_order_and_the_tags_are_not() -> None:
    slots = [PI, ONE, 0, 0, 0, 0, 0, 0]
    assert full_tag(0xC0, 6, slots) == 0x0FFF
    zero_on_top = [0, ONE, 0, 0, 0, 0, 0, 0]
    assert full_tag(0xC0, 6, zero_on_top) == 0x1FFF


@pytest.mark.parametrize("top", range(8))
def test_the_tag_of_a_slot_moves_with_top(top: int) -> None:
    slots = [ONE, *[0] * 7]
    full = full_tag(1 << top, top, slots)
    assert full >> 2 * top & 3 == Tag.VALID
    assert full | 3 << 2 * top == 0xFFFF
    assert abridged_tag(full) == 1 << top
