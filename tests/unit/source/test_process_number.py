"""Numbers that no process has: an error of ours in every verb that takes one, exit code 2."""

from __future__ import annotations

import re

import pytest

from fpstate.command.main import main
from fpstate.errors import SourceError
from fpstate.source import ptrace
from fpstate.source.open import open_source
from fpstate.source.process import snapshot
from fpstate.source.process_number import process_number
from fpstate.source.rewrite import rewrite

NONE = ("0", "000", str(2**31), str(2**32), str(2**32 + 1), str(2**63), str(2**64), "9" * 23, "9" * 5000)
VERBS = (
    ("show", "{}"),
    ("show", "{}", "--json"),
    ("threads", "{}"),
    ("check", "{}"),
    ("diff", "{}", "{}"),
    ("diff", "/dev/null", "{}"),
    ("convert", "{}", "-"),
    ("set", "{}", "mxcsr=0x1f80"),
    ("set", "1", "--thread", "{}", "mxcsr=0x1f80"),
)


@pytest.mark.parametrize("number", NONE, ids=lambda text: text[:24])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_no_process_has_it(verb, number, capsys):
    try:
        code = main([part.format(number) for part in verb])
    except SystemExit as error:  # argparse refuses what int() does
        code = error.code
    told = capsys.readouterr()
    assert code == 2, told
    assert told.out == ""
    assert re.search(r"1 to 2147483647|invalid int value|/dev/null", told.err)


@pytest.mark.parametrize("number", ["-1", str(-(2**31)), str(-(2**70))])
def test_nor_a_negative_one(number, capsys):
    for verb in (("set", number, "mxcsr=1"), ("set", "1", "--thread", number, "mxcsr=1")):
        assert main(verb) == 2
        assert "1 to 2147483647" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number", [0, -1, 2**31, -(2**31), 2**64, -(10**5000)], ids=lambda number: f"{number:#x}"[:24]
)
def test_in_python_too(number):
    for call in (snapshot, lambda pid: rewrite(pid, lambda registers: None)):
        with pytest.raises(SourceError, match="no process or thread has this number"):
            call(number)
    for call in (ptrace.snapshot, ptrace.edit):
        with pytest.raises(SourceError, match="no process or thread has this number"):
            call(number, ptrace.host_layout(), 1.0, *((bytes,) if call is ptrace.edit else ()))


def test_the_largest_is_a_number_that_nobody_has():
    with pytest.raises(SourceError, match="no such process"):
        open_source(str(2**31 - 1))


def test_what_names_a_process():
    assert process_number("007") == 7
    for name in ("", "-1", "+1", "1 ", "1\n", "٣", "²", "0x10", "1_000", "./1"):
        assert process_number(name) is None
