"""Times, sizes and counts as people write them."""

from __future__ import annotations

import argparse

import pytest

from fpstate.command.quantity import (
    QUANTUM_MINIMUM,
    bitmap,
    count,
    duration,
    nanoseconds,
    quantum,
    size,
    word,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1ns", 1), ("100us", 100_000), ("1.5ms", 1_500_000), ("2s", 2_000_000_000), (" 3 MS ", 3_000_000)],
)
def test_a_time_has_a_unit(text, expected):
    assert nanoseconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "0us", "-1us", "1 minute", "us", "0.1ns", "1e3us", "½s"])
def test_anything_else_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as 100us"):
        nanoseconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("65536", 65536), ("64k", 65536), ("64KiB", 65536), ("1M", 1 << 20), ("0.5m", 1 << 19)],
)
def test_a_size_is_bytes_or_has_a_unit(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "4G", "k", "0.2"])
def test_anything_else_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 65536"):
        size(text)


@pytest.mark.parametrize("text", ["0", "-1", "+1", "1.0", "", "x", "٣"])
def test_a_count_is_a_whole_number_above_0(text):
    assert count("17") == 17
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number above 0"):
        count(text)


def test_a_quantum_shorter_than_a_tick_takes_is_refused():
    assert quantum("20us") == QUANTUM_MINIMUM
    with pytest.raises(argparse.ArgumentTypeError, match="'19us' is shorter than 20 us"):
        quantum("19us")
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time"):
        quantum("20")


@pytest.mark.parametrize(
    ("ns", "expected"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1 us"), (1990, "1.99 us"), (2.5e6, "2.5 ms"), (3e9, "3 s")],
)
def test_a_duration_is_written_with_the_unit_that_fits(ns, expected):
    assert duration(ns) == expected


def test_bitmaps_have_64_bits() -> None:
    assert (bitmap("0x2e7"), bitmap("0b11"), bitmap("7"), bitmap("0")) == (0x2E7, 3, 7, 0)
    assert bitmap(hex((1 << 64) - 1)) == (1 << 64) - 1


@pytest.mark.parametrize("text", ["zz", "", "-1", "0x1" + "0" * 16])
def test_other_texts_are_no_bitmaps(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no bitmap such as 0x2e7"):
        bitmap(text)


def test_an_amount_of_work_has_64_bits():
    assert word(str(2**64 - 1)) == 2**64 - 1
    for text in (str(2**64), "0", "-1", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError):
            word(text)
