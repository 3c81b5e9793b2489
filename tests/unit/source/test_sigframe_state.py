"""The state in signal frames: read whole, and what sigreturn will not load is said."""

import struct

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import differences
from fpstate.image.subject import SOFTWARE_AT
from fpstate.source.raw import open_raw
from fpstate.testing import build_image, random_image
from fpstate.testing.container import signal_frame

ZEN4 = Cpu.catalog("zen4")
NO_AMX = ~mask_of(Component.TILEDATA)


def changed(data, offset, value, size=4):
    return data[:offset] + value.to_bytes(size, "little") + data[offset + size :]


@pytest.mark.parametrize("name", Cpu.catalog_names())
@pytest.mark.parametrize("machine", ["x86-64", "i386"])
@pytest.mark.parametrize("named", [True, False])
def test_every_register_comes_back(name, machine, named):
    cpu = Cpu.catalog(name)
    layout = Layout.standard(cpu, cpu.xcr0)
    image = random_image(layout, 5, present=layout.mask)
    (state,) = open_raw(signal_frame(image, machine=machine), cpu=cpu if named else None)
    assert (state.machine, state.xcr0) == (machine, layout.mask)
    assert state.image.layout_source == ("given" if named else "inferred")
    assert state.findings == ()
    assert differences(state.image, image) == []


def test_a_frame_of_a_task_without_tiledata_is_shorter():
    cpu = Cpu.catalog("sapphire-rapids")
    image = random_image(Layout.standard(cpu, cpu.xcr0 & NO_AMX), 5)
    for each in (cpu, None):
        (state,) = open_raw(signal_frame(image), cpu=each)
        assert (state.image, state.image.layout) == (image, image.layout)


@pytest.mark.parametrize(
    ("offset", "value", "word", "found"),
    [
        (0, 1, "magic1", 1),
        (16, 575, "xstate_size", 575),
        (16, 0xFFFFFFFF, "more than extended_size", 0xFFFFFFFF),
        (4, 0, "more than extended_size", 2440),
    ],
)
def test_words_that_the_kernel_does_not_believe_leave_fxsave_alone(offset, value, word, found):
    image = random_image(Layout.standard(ZEN4), 5, present=0x2E7)
    data = changed(signal_frame(image), SOFTWARE_AT + offset, value)
    (state,) = open_raw(data, format="sigframe")
    assert [each.id for each in state.findings] == ["SRC007"]
    assert word in state.findings[0].message
    assert (state.findings[0].found, state.image.layout_source) == (found, "format")
    assert "ymm0" not in state.image.registers
    assert state.image.registers["xmm3"] == image.registers["xmm3"]


def test_without_the_second_magic_word_all_is_shown_and_what_will_be_lost_is_said():
    image = random_image(Layout.standard(ZEN4), 5, present=0x2E7)
    whole = signal_frame(image)
    for data, found in ((changed(whole, len(whole) - 4, 7), 7), (whole[:-4], None), (whole[:-1], None)):
        (state,) = open_raw(data)
        (finding,) = state.findings
        assert (finding.id, finding.found, finding.offset) == ("SRC007", found, image.layout.size)
        assert "initialise" in finding.message
        assert state.image == image


def test_a_smaller_consistent_frame_is_read_as_such():
    image = random_image(Layout.standard(ZEN4, 7), 5, present=7)
    (state,) = open_raw(signal_frame(image))
    assert (state.image, state.findings) == (image, ())


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("machine", "start"), [("x86-64", 0), ("i386", 112)])
def test_components_behind_the_end_that_a_frame_states_are_shown_and_told_of(machine, start, named):
    """As sigreturn loads them, with the second magic word that lies in tmm0 then."""
    cpu = Cpu.catalog("emerald-rapids")
    image = random_image(Layout.standard(cpu), 5, present=0x602E7)
    whole = signal_frame(image, machine=machine)
    magic = int.from_bytes(whole[-4:], "little")
    data = changed(changed(whole, start + SOFTWARE_AT + 16, 2816), start + 2816, magic)
    (state,) = open_raw(data, cpu=cpu if named else None)
    (finding,) = state.findings
    assert (finding.id, finding.component, finding.found, finding.expected) == ("SRC018", 18, 2816, 11008)
    assert {each.register for each in differences(state.image, image)} == {"tmm0"}
    assert state.image.registers["tmm0"] & 0xFFFFFFFF == magic


def test_what_a_frame_asks_for_behind_its_end_and_does_not_state_is_left_out():
    cpu = Cpu.catalog("emerald-rapids")
    image = random_image(Layout.standard(cpu), 5, present=0x202E7)
    whole = signal_frame(image)
    data = changed(changed(whole, SOFTWARE_AT + 16, 2816), 2816, int.from_bytes(whole[-4:], "little"))
    (state,) = open_raw(data, cpu=cpu)
    assert state.findings == ()
    assert state.image.layout.size == 2816
    with pytest.raises(SourceError, match="2816 bytes for XCR0 0x602e7"):
        open_raw(data)


def test_components_that_xfeatures_does_not_ask_for_will_be_initialised():
    image = random_image(Layout.standard(ZEN4), 5, present=0x2E7)
    (state,) = open_raw(signal_frame(image, xfeatures=3), cpu=ZEN4)
    assert [(each.id, each.component) for each in state.findings] == [("SRC008", n) for n in (2, 5, 6, 7, 9)]
    assert state.image == image
    (state,) = open_raw(signal_frame(image, xfeatures=(1 << 64) - 1), cpu=ZEN4)
    assert (state.image, state.findings) == (image, ())


def test_xfeatures_that_nobody_has_are_not_guessed_around():
    image = random_image(Layout.standard(ZEN4), 5)
    with pytest.raises(AmbiguousLayout):
        open_raw(signal_frame(image, xfeatures=(1 << 64) - 1))


def test_a_frame_that_is_cut_short_is_refused():
    data = signal_frame(random_image(Layout.standard(ZEN4), 5))
    with pytest.raises(SourceError, match="xstate_size says 2440") as caught:
        open_raw(data[:2000])
    assert caught.value.offset == 2000
    with pytest.raises(SourceError, match="fewer than the 512"):
        open_raw(data[:500], format="sigframe")


def test_on_i386_the_fsave_header_wins():
    image = build_image(Layout.standard(ZEN4), {"st0": 1 << 63 | 0x3FFF << 64, "fctrl": 0x27F, "ymm3": 5})
    data = signal_frame(image, machine="i386")
    (state,) = open_raw(data)
    assert state.findings == ()
    control = struct.pack("<H", 0xF7F)
    (state,) = open_raw(control + data[2:])
    assert [each.id for each in state.findings] == ["SRC009"]
    assert state.image.registers["fctrl"] == 0xF7F
    assert state.image.registers["st0"] == image.registers["st0"]
    assert state.image.registers["ftag_abridged"] == image.registers["ftag_abridged"]
    assert state.image.registers["ymm3"] == 5


def test_an_i386_frame_without_fxsave_has_x87_alone():
    image = build_image(Layout.standard(ZEN4), {"st1": 77})
    data = signal_frame(image, machine="i386")[:110] + b"\xff\xff"
    (state,) = open_raw(data, format="sigframe")
    assert (state.machine, state.image.registers["st1"]) == ("i386", 77)
    assert "xmm0" not in state.image.registers
