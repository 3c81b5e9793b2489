import pytest

from fpstate import Cpu, Image, Layout
from fpstate.command.threads import describe, table
from fpstate.image.legacy import FSAVE_LAYOUT
from fpstate.source.census import Environment, odd_ones, x87_depth
from fpstate.source.thread import ThreadState


def thread(cpu: str = "skylake-sp", **registers: int) -> ThreadState:
    image = Image.initial(Layout.standard(Cpu.catalog(cpu)))
    for name, value in registers.items():
        image.registers[name] = value
    return ThreadState(None, image)


def odd(*threads: ThreadState) -> list[tuple[int, str, int, int]]:
    return [(each.index, each.register, each.value, each.majority) for each in odd_ones(threads)]


def test_no_thread_and_one_thread_are_not_odd() -> None:
    assert odd() == []
    assert odd(thread(mxcsr=0x9FC0)) == []


@pytest.mark.parametrize(
    ("register", "value", "usual"),
    [("mxcsr", 0x9F80, 0x1F80), ("fctrl", 0x27F, 0x37F), ("pkru", 0x55555554, 0)],
)
def test_the_minority_is_odd(register: str, value: int, usual: int) -> None:
    threads = [thread(), thread(), thread(**{register: value}), thread()]
    assert odd(*threads) == [(2, register, value, usual)]


def test_the_majority_decides_and_not_the_initial_value() -> None:
    assert odd(thread(mxcsr=0x9F80), thread(), thread(mxcsr=0x9F80)) == [(1, "mxcsr", 0x1F80, 0x9F80)]


def test_among_equals_the_initial_value_decides() -> None:
    assert odd(thread(mxcsr=0x9F80), thread()) == [(0, "mxcsr", 0x9F80, 0x1F80)]


def test_among_equals_without_the_initial_value_the_first_thread_decides() -> None:
    assert odd(thread(mxcsr=0x9F80), thread(mxcsr=0x3F80)) == [(1, "mxcsr", 0x3F80, 0x9F80)]


def test_sticky_flags_do_not_count() -> None:
    assert odd(*(thread(mxcsr=0x1F80 | flags) for flags in range(64))) == []


def test_each_register_is_voted_on_apart() -> None:
    threads = [thread(mxcsr=0x9F80), thread(fctrl=0x27F), thread(), thread()]
    assert odd(*threads) == [(0, "mxcsr", 0x9F80, 0x1F80), (1, "fctrl", 0x27F, 0x37F)]


def test_threads_without_protection_keys_do_not_vote_on_them() -> None:
    assert odd(thread("haswell"), thread("haswell")) == []


def test_x87_depth_counts_what_is_not_empty() -> None:
    assert x87_depth(thread().image) == 0
    assert x87_depth(thread(st0=1, st1=2).image) == 2
    assert x87_depth(thread(mm0=1).image) == 8


def test_images_without_room_for_a_register_do_not_vote_on_it() -> None:
    """XSAVEC with RFBM 60000H stores no control word, FSAVE no MXCSR."""
    cpu = Cpu.catalog("emerald-rapids")
    tiles = Image.initial(Layout.compacted(cpu, 0x60000))
    assert Environment.of(tiles) == Environment(None, None, None)
    assert x87_depth(tiles) is None
    threads = [ThreadState(None, image) for image in (tiles, Image.initial(FSAVE_LAYOUT))]
    assert odd_ones(threads) == []
    report = describe("tiles", threads, [])
    assert [(each["mxcsr"], each["fcw"], each["x87_depth"]) for each in report["threads"]] == [
        (None, None, None),
        (None, "0x037f", 0),
    ]
    assert [line.split()[1:4] for line in table(report)][1:3] == [["-", "-", "-"], ["-", "0x037f", "0"]]
