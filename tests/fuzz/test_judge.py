"""A reader or a verb that is sabotaged in one way is caught for that way: the judge of the fuzzer can fail."""

from __future__ import annotations

import json

import campaign
import pytest
import trial as trial_module
from grammar.draw import NUMBERS, Draw, choices
from grammar.kinds import Made, make
from grammar.states import standard
from grammar.wrapping import CODECS
from judge import Judge
from session import Session
from smaller import smaller
from trial import Trial

from fpstate.errors import SourceError
from fpstate.source import raw
from fpstate.testing import random_image
from fpstate.testing.core import register_set

STATE = register_set(random_image(standard("haswell"), 1, present=7))
HANG = 0.3


def plain(**options):
    return Made("raw", "in.bin", STATE, cpu="haswell", to_cpu="haswell", **options)


def broken(made, **bounds):
    """The kinds of breaks that an input shows."""
    with Judge(**bounds) as judge, Trial(judge) as trial:
        return {each.kind for each in trial.run(made).breaks}


def test_without_sabotage_nothing_is_broken():
    assert broken(plain()) == set()
    assert broken(plain(json=True)) == set()


def fails(data, **_):
    raise ValueError(f"byte {data[512]}")


def claims(data, **_):
    return bytearray(b"\1") * (200 << 20)


def errs(data, **_):
    raise OSError(22, "Invalid argument")


def loops(data, **_):
    while True:
        pass


@pytest.mark.parametrize(
    ("sabotage", "kind"), [(fails, "exception"), (claims, "memory"), (errs, "errno"), (loops, "time")]
)
def test_a_reader_that_breaks_is_caught(sabotage, kind, monkeypatch):
    intact = raw.open_raw

    def reader(data, **options):
        sabotage(data, **options)
        return intact(data, **options)

    monkeypatch.setattr(raw, "open_raw", reader)
    assert kind in broken(plain(), **({"hang": HANG} if kind == "time" else {}))


def test_a_reader_that_takes_more_address_space_than_there_is_ends(monkeypatch):
    monkeypatch.setattr(raw, "open_raw", lambda data, **_: bytearray(1 << 40))
    assert "memory" in broken(plain())


def test_a_reader_that_reads_again_and_again_is_caught(monkeypatch):
    intact = raw.raw_threads

    def reader(stream, **options):
        for _ in range((16 << 20) // len(STATE) + 100):
            stream.read_at(0, len(STATE))
        return intact(stream, **options)

    monkeypatch.setattr(raw, "raw_threads", reader)
    assert "reading" in broken(plain())


def test_a_reader_that_inflates_again_and_again_is_caught(monkeypatch):
    intact = raw.raw_threads

    def reader(stream, **options):
        for _ in range(20):
            stream._restart()
            stream.read_at(5 << 20, 1)
        return intact(stream, **options)

    monkeypatch.setattr(raw, "raw_threads", reader)
    packed = CODECS["gzip"](Draw(b""), STATE + bytes(6 << 20))
    assert "inflating" in broken(Made("raw", "in.bin", packed))


def verb(name, sabotage):
    """The command, with one verb that does something else."""
    intact = trial_module.main
    return lambda asked: sabotage(asked) if asked[0] == name else intact(asked)


@pytest.mark.parametrize(
    ("sabotage", "kind"),
    [
        (lambda _: print("thread \x1b[31mX") or 0, "control characters"),
        (lambda _: print("thread \u202eX") or 0, "control characters"),
        (lambda _: 7, "exit code"),
        (lambda _: 2, "silence"),
        (lambda _: print('{"schema":') or 0, "exception"),
    ],
)
def test_a_verb_that_answers_otherwise_is_caught(sabotage, kind, monkeypatch):
    monkeypatch.setattr(trial_module, "main", verb("show", sabotage))
    assert kind in broken(plain(json=True))


def refuses(path, data):
    with open(path, "wb") as file:
        file.write(data[:100])
    raise SourceError(path, "no space")


def leaves(path, data):
    with open(".out.bin.0123", "wb") as file:
        file.write(data)


def damages(path, data):
    with open(path, "wb") as file:
        file.write(data[:528] + b"\1" + data[529:])


def alters(path, data):
    with open(path, "wb") as file:
        file.write(data[:170] + bytes([data[170] ^ 1]) + data[171:])


@pytest.mark.parametrize(
    ("command", "sabotage", "kind"),
    [
        ("check", refuses, "half-written"),
        ("convert", refuses, "half-written"),
        ("check", leaves, "left behind"),
        ("check", damages, "fix"),
        ("convert", damages, "convert"),
        ("convert", alters, "convert"),
    ],
)
def test_what_is_written_wrong_is_caught(command, sabotage, kind, monkeypatch):
    monkeypatch.setattr(f"fpstate.command.{command}.write_private", sabotage)
    assert kind in broken(plain())


def test_a_break_is_kept_with_a_smaller_input_that_shows_it_again(tmp_path, monkeypatch, capsys):
    intact = raw.open_raw

    def reader(data, **options):
        if len(data) > 512 and data[512] == 7:
            raise ValueError("seven")
        return intact(data, **options)

    monkeypatch.setattr(raw, "open_raw", reader)
    with Session("raw", tmp_path / "finds", tmp_path) as session:
        number = next(
            number for number in range(200) if session.attempt(choices("kept", number), number).breaks
        )
    told = json.loads(next((tmp_path / "finds").glob("*.json")).read_text())
    assert told["key"].startswith("exception: ValueError")
    assert told["number"] == number
    assert len(told["choices"]) < len(told["first_choices"])
    assert campaign.again(next((tmp_path / "finds").glob("*.json"))) == 1
    monkeypatch.undo()
    assert campaign.again(next((tmp_path / "finds").glob("*.json"))) == 0
    assert "seven" in capsys.readouterr().out


def test_a_process_that_dies_is_told_with_what_it_died_of(tmp_path, monkeypatch, capsys):
    """As a reader that ends the process in C would: by a signal, in the middle of an input."""
    (tmp_path / "unguided.py").write_text(
        "import os, pathlib, sys\n"
        "work = pathlib.Path(sys.argv[2])\n"
        "(work / 'current').write_bytes(bytes(9))\n"
        '(work / \'stats.json\').write_text(\'{"inputs": 7, "worst_memory": 0, "worst_seconds": 0,'
        ' "worst_inflated": 0, "breaks": {}}\')\n'
        "os.kill(os.getpid(), 11)\n"
    )
    monkeypatch.setattr(campaign, "HERE", tmp_path)
    row = campaign._kind("raw", tmp_path, tmp_path / "finds", ["-runs=100"], 1, guided=False)
    assert row[:3] == ("raw", "35", "5")
    told = json.loads(next((tmp_path / "finds").glob("raw-death-*.json")).read_text())
    assert (told["key"], told["first_choices"]) == ("death: -11", bytes(9).hex())
    assert "the process died" in capsys.readouterr().err


def test_choices_are_made_smaller_as_far_as_they_still_show_it():
    data = choices("smaller", 1)
    wanted = data[100:103]
    assert smaller(data, lambda tried: wanted in tried, tries=2000) == wanted
    assert smaller(data, lambda tried: True, tries=20) == b""


def test_past_their_end_choices_are_the_plain_ones():
    draw = Draw(b"")
    assert (draw.bits(4), draw.chance(255), draw.pick("abc"), draw.odd(5, 4, 255)) == (0, False, "a", 5)
    assert Draw(b"\xff\xff" * 9).odd(5, 4, 255) in {number & 0xFFFFFFFF for number in NUMBERS}
    assert make("raw", b"") == make("raw", bytes(3000))
