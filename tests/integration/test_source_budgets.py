"""No file takes more memory than is promised for its size, nor more work than what it holds; what would is named."""

from __future__ import annotations

import os
import struct
import subprocess
from functools import cache

import hostile_sources as make
import pytest
from source_cost import cost, promised

from fpstate.errors import ProgramError
from fpstate.program import Program

MIB = 1 << 20
LONG = bool(os.environ.get("FPSTATE_LONG"))
THREADS = 65_536 if LONG else 1_500
SHARED, THREAD_COUNT = "bytes that are named more than once", "threads"


def written(tmp_path, data, name="source"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


REFUSED = {
    "1 MiB of register set, 2,000 times": (
        lambda: make.overlapping(2000, MIB),
        "register set or description",
    ),
    "the same, compressed": (
        lambda: make.PACK["gzip"](make.overlapping(2000, MIB)),
        "register set or description",
    ),
    "64 KiB of register set, 2,000 times": (lambda: make.overlapping(2000, 64 << 10), SHARED),
    "the same, xz": (lambda: make.xz(make.overlapping(2000, 64 << 10)), SHARED),
    "20,000 segments": (lambda: make.overlapping(20_000, 832), "note segments"),
    "segments that each begin a note later": (lambda: make.staggered(1000), SHARED),
    "2^20 program headers": (lambda: make.xz(make.counted_in_section_0(1 << 20, 1 << 16)), "note segments"),
    "2^20 + 1 program headers": (lambda: make.counted_in_section_0((1 << 20) + 1, 1), "program headers"),
    "70,000 threads": (lambda: make.xz(make.many_threads(70_000, state=False)), THREAD_COUNT),
    "60,000 threads with one context": (lambda: make.shared_context(60_000), SHARED),
    "the same, gzip": (lambda: make.PACK["gzip"](make.shared_context(60_000)), SHARED),
    "65,537 threads in a minidump": (lambda: make.without_context(65_537), THREAD_COUNT),
    "4,098 streams": (lambda: make.repeated_streams(2049), "streams of a minidump"),
    "300,000 members of gzip": (lambda: make.PACK["gzip"](b"") * 300_000, "compressed members"),
    "300,000 members of bzip2": (lambda: make.PACK["bzip2"](b"") * 300_000, "compressed members"),
    "100,000 sections": (lambda: make.guest_of_sections(100_000), "sections of a guest state"),
    "100,000 leaves": (lambda: make.guest_of_leaves(100_000), "one section besides memory"),
    "numbers in CRIU": (lambda: make.criu_of_numbers(MIB - 200), None),
    "messages in CRIU": (lambda: make.criu_of_messages(MIB - 200), None),
    "messages in CRIU, xz": (lambda: make.xz(make.criu_of_messages(MIB - 200)), None),
    "xz in gzip": (lambda: make.PACK["gzip"](make.xz(make.distant(0))), None),
    "a dictionary of 64 MiB, filled": (
        lambda: make.xz(make.distant(80 * MIB), 64 * MIB),
        "memory of the decoder",
    ),
    "a dictionary of 192 MiB, filled": (
        lambda: make.xz(make.distant(40 * MIB), 192 * MIB),
        "memory of the decoder",
    ),
    "a dictionary of 512 MiB": (lambda: make.xz(make.distant(0), 512 * MIB), "memory of the decoder"),
}
"""What is refused: how it is made, and the budget that the error names, None where another error comes first."""


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_sources_are_refused_within_the_promise(tmp_path, name):
    data, budget = made(name), REFUSED[name][1]
    path = written(tmp_path, data, "core-1.img" if "CRIU" in name else "source")
    found = cost(path, "show", str(path))
    assert found.code == 2
    assert f"{budget or ''})" in found.message or budget is None
    assert found.peak <= promised(path)
    assert found.printed == 0


READ = {
    "far and near in turn, xz": lambda: make.xz(make.alternating(100, 12 * MIB)),
    "far and near in turn, bzip2": lambda: make.PACK["bzip2"](make.alternating(20, 12 * MIB)),
    "far and near in turn, gzip": lambda: make.PACK["gzip"](make.alternating(100, 12 * MIB)),
    "register sets of 64 KiB": lambda: make.xz(make.wide_sets(900)),
    "threads with AMX": lambda: make.xz(make.many_threads(THREADS // 3, make.WHOLE)),
    "threads": lambda: make.xz(make.many_threads(THREADS)),
    "threads without a state": lambda: make.xz(make.many_threads(THREADS, state=False)),
    "threads without a context": lambda: make.xz(make.without_context(THREADS)),
    "scattered contexts": lambda: make.xz(make.scattered_contexts(200, 12 * MIB)),
    "a dictionary of 64 MiB, empty": lambda: make.xz(make.distant(4 * MIB), 64 * MIB),
    "a dictionary of 8 MiB": lambda: make.xz(make.distant(48 * MIB), 8 * MIB),
    "a name of 1 MiB in CRIU": lambda: make.criu_of_names(MIB - 200),
    "96 MiB of a guest's memory": lambda: make.xz(make.guest_with_memory(96 * MIB)),
}
"""What is read, as it makes sense, however odd it is."""
MANY = ("register sets of 64 KiB", "threads") if LONG else ("register sets of 64 KiB",)


@cache
def made(name):
    return READ[name]() if name in READ else REFUSED[name][0]()


@pytest.mark.parametrize("name", READ)
def test_odd_sources_are_read_within_the_promise(tmp_path, name):
    path = written(tmp_path, made(name), "core-1.img" if "CRIU" in name else "source")
    found = cost(path, "show", str(path))
    assert found.code in (0, 1)
    assert found.printed > 100
    assert found.peak <= promised(path)


@pytest.mark.parametrize("verb", ["threads", "show --json", "check --json", "threads --json"])
@pytest.mark.parametrize("name", MANY)
def test_every_verb_goes_through_the_threads_one_by_one(tmp_path, verb, name):
    path = written(tmp_path, made(name))
    found = cost(path, *verb.split(), str(path), *(["--cpu", "haswell"] if "check" in verb else []))
    assert found.code in (0, 1)
    assert found.printed > 10_000
    assert found.peak <= promised(path)


def test_diff_and_convert_keep_the_thread_that_is_meant(tmp_path):
    path = written(tmp_path, made("register sets of 64 KiB"))
    for verb in (("diff", str(path), str(path), "--thread", "7"), ("diff", str(path), str(path))):
        found = cost(path, *verb)
        assert found.code == (0 if "--thread" in verb else 2)
        assert found.peak <= promised(path)


def test_a_list_of_all_threads_is_refused_where_it_would_be_too_large_and_going_through_them_is_not(tmp_path):
    path = written(tmp_path, made("register sets of 64 KiB"))
    listed, each = cost(path, mode="list"), cost(path, mode="each")
    assert listed.code == 2
    assert "(budget: images kept at once)" in listed.message
    assert max(listed.peak, each.peak) <= promised(path)
    assert (each.code, each.message) == (0, "")


def test_a_core_of_10_000_threads_with_amx_is_read_whole(tmp_path):
    path = written(tmp_path, make.many_threads(10_000, make.WHOLE))
    assert path.stat().st_size > 110_000_000
    found = cost(path, mode="list")
    assert (found.code, found.message) == (0, "")
    assert found.peak <= promised(path)


UNBOUNDED = "budget.Budget.hold = lambda *_, **__: None"
ALL_AT_ONCE = "one = reader.Reader.states; reader.Reader.states = lambda *arguments: list(one(*arguments))"
SABOTAGED = {
    "a list without a budget": ("register sets of 64 KiB", "list", UNBOUNDED),
    "a dictionary without a budget": ("a dictionary of 64 MiB, filled", "each", UNBOUNDED),
    "every image for one": ("register sets of 64 KiB", "each", ALL_AT_ONCE),
}


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_reader_without_its_budget_is_caught_by_this_measure(tmp_path, name):
    source, mode, sabotage = SABOTAGED[name]
    path = written(tmp_path, made(source))
    found = cost(path, mode=mode, sabotage=f"from fpstate.source import budget, reader; {sabotage}")
    assert found.code == 0
    assert found.peak > promised(path)


def test_sparse_files_count_as_what_is_stored(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        unit = make.thread(1, make.small_state())
        file.write(make.core([(1 << 38, len(unit)), (1 << 39, 1 << 39)], b""))
        file.seek((1 << 38) + 64 + 112)
        file.write(unit)
        file.truncate(1 << 40)
    found = cost(path, "show", str(path))
    assert (found.code, found.printed) == (2, 0)
    assert "(budget: notes)" in found.message or "note" in found.message
    assert found.peak <= promised(path) < 80 * MIB


@pytest.mark.parametrize("verb", ["show", "check", "threads"])
@pytest.mark.parametrize("source", ["/dev/zero", "/dev/urandom", "pipe"])
def test_sources_that_never_end_are_refused_after_1_mib(tmp_path, verb, source):
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE) if source == "pipe" else None
    try:
        found = cost(
            tmp_path / "none", verb, "-" if endless else source, stdin=endless.stdout if endless else None
        )
    finally:
        if endless:
            endless.stdout.close()
            endless.wait()
    assert found.code == 2
    assert "more than 1048576 bytes" in found.message
    assert "(budget: bytes copied of a pipe or device)" in found.message
    assert found.peak <= promised(tmp_path / "none")


def test_a_guest_state_is_loaded_within_the_promise(tmp_path):
    path = written(tmp_path, make.guest_with_memory(64 * MIB), "a.fpvso")
    found = cost(path, mode="saved")
    assert (found.code, found.message) == (0, "")
    assert found.peak <= promised(path)


PROGRAMS = {
    "segments that share their bytes": (
        lambda: make.program([(0, 2 * MIB, 2 * MIB * number) for number in range(100)], 2 * MIB),
        "they overlap in the file",
    ),
    "dynamic tables that share their bytes": (
        lambda: make.program([(0, 2 * MIB, 0)] * 60_000, 4 * MIB, kind=2),
        "dynamic tables with more bytes than the file",
    ),
    "a million libraries": (
        lambda: make.program([(4096, 8 * MIB, 0)], 4096, kind=2) + struct.pack("<QQ", 1, 0) * (MIB // 2),
        "shared library",
    ),
    "symbols": (
        lambda: make.object_file(
            [make.section(2, 64 + 128, 12 * MIB, link=1, entry=24), make.section(3, 0, 64)],
            b"\1\0\0\0\x10\0\0\0" + bytes(16) + struct.pack("<IBBHQQ", 1, 16, 0, 0, 0, 0) * (MIB // 2 - 1),
        ),
        "has no executable section",
    ),
    "undefined symbols": (
        lambda: make.object_file(
            [
                make.section(2, 64 + 192, 12 * MIB, link=2, entry=24),
                make.section(1, 0, 64, flags=6),
                make.section(3, 0, 64),
            ],
            struct.pack("<IBBHQQ", 1, 16, 0, 0, 0, 0) * (MIB // 2),
        ),
        "undefined symbols: ",
    ),
    "one endless name": (
        lambda: make.object_file(
            [make.section(1, 64, 64, name=4096 + number, flags=2) for number in range(30_000)]
            + [make.section(3, 64, 12 * MIB)],
            b"n" * 12 * MIB,
        ),
        "has no executable section",
    ),
    "sections that share their bytes": (
        lambda: make.object_file(
            [make.section(1, 64, 2 * MIB, flags=6) for _ in range(100)] + [make.section(3, 64, 64)],
            b"n" * 2 * MIB,
        ),
        "they overlap",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs_are_refused_within_the_promise(tmp_path, name):
    make_program, message = PROGRAMS[name]
    path = written(tmp_path, make_program())
    found = cost(path, mode="program")
    assert found.code == 2
    assert message in found.message
    assert found.peak <= promised(path)


def test_a_program_that_shares_nothing_is_loaded(tmp_path):
    path = written(tmp_path, make.program([(0, 4096, 0), (4096, 4096, 4096)], 8192))
    with pytest.raises(ProgramError, match="overlap in the file"):
        Program.from_bytes(make.program([(0, 8192, 0), (0, 8192, 8192)], 8192))
    assert Program.from_file(path).size == 8192
