"""Cores of this project's own programs, as Linux and three releases of gdb wrote them on two processors.

Every register of every thread is known; what a writer lost is named here, and the reader has to name it too.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.layout import Place
from fpstate.command.main import main
from fpstate.source import core as core_module
from fpstate.source.core import core_threads
from fpstate.source.note import read_core
from fpstate.source.open import open_source
from fpstate.source.stream import MemoryStream
from patterns import (
    AMX_REGISTERS,
    amd_layout,
    expectations,
    little,
    noticed_flips,
    stated,
    unheld,
    with_vectors,
    wrong,
)
from recorded import OWN

AMD_CORES = sorted((OWN / "generated/cores").glob("*.core.xz"))
INTEL_CORES = sorted((OWN / "generated_intel/cores").glob("*.core.xz"))
CORES = [*AMD_CORES, *INTEL_CORES]
KERNEL = [path for path in CORES if ".kernel." in path.name]
SRC017 = frozenset({("SRC017", "TILECFG"), ("SRC017", "TILEDATA")})


@dataclass(frozen=True)
class Writer:
    """What a writer of cores made of the state: what it lost, and the findings that say so."""

    lost: re.Pattern[str] = field(default_factory=lambda: re.compile("(?!)"))
    findings: frozenset[tuple[str, str | None]] = frozenset()

    @property
    def code(self) -> int:
        """The exit code of ``show``: 1 where something was lost."""
        return int(any(identity != "SRC001" for identity, _ in self.findings))


BY_GDB = frozenset({("SRC001", None)})
TILES = re.compile("tilecfg|tmm[0-7]")
WRITERS = {
    ("generated", "kernel"): Writer(),
    ("generated", "gdb13_1"): Writer(
        re.compile(r"k\d|zmm\d+h?|[xy]mm(1[6-9]|2\d|3[01])"),
        BY_GDB | {("SRC002", component) for component in ("OPMASK", "ZMM_HI256", "HI16_ZMM")},
    ),
    ("generated", "gdb16_3"): Writer(findings=BY_GDB),
    ("generated", "gdb18_1"): Writer(findings=BY_GDB),
    ("generated_intel", "kernel"): Writer(),
    ("generated_intel", "gdb13_1"): Writer(TILES, BY_GDB | SRC017),
    ("generated_intel", "gdb16_3"): Writer(TILES, BY_GDB | SRC017),
    ("generated_intel", "gdb18_1"): Writer(TILES, BY_GDB | SRC017),
}
"""By processor and writer."""


def machine(path: Path) -> str:
    return path.parent.parent.name


def writer(path: Path) -> Writer:
    return WRITERS[machine(path), path.name.split(".")[1]]


def named(path: Path) -> str:
    return f"{machine(path)}/{path.name}"


def expected(path: Path) -> list[dict[str, int]]:
    """Every register of each thread of a core, in ascending order of the threads' ids."""
    known = {each.stem for each in (path.parent.parent / "expected").glob("*.json")}
    program = path.name.split(".")[0]
    if program not in known:
        program = program.rpartition("_")[0]
    return [with_vectors(stated(thread)) for thread in expectations(path.parent.parent, program)]


def show(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any]:
    code = main(["show", "--json", "--all", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def values_of(shown: dict[str, Any], name: str) -> int:
    return int(shown["registers"][name], 16)


@pytest.mark.parametrize("path", CORES, ids=named)
def test_every_register_of_every_thread_is_what_the_process_had(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = show(capsys, path)
    threads = sorted(report["threads"], key=lambda thread: thread["tid"])
    compared = 0
    for thread, values in zip(threads, expected(path), strict=True):
        missing = {name for name in values if name not in thread["registers"]}
        assert missing == {name for name in values if writer(path).lost.fullmatch(name)}
        shown = {name: values_of(thread, name) for name in values if name not in missing}
        assert {name: value for name, value in shown.items() if value != values[name]} == {}
        assert {(f["id"], f["component"]) for f in thread["findings"]} == writer(path).findings
        assert thread["layout_source"] == ("note" if path in KERNEL else "inferred")
        compared += len(shown)
    assert compared >= 20 * len(threads)
    assert code == writer(path).code


def test_the_recordings_and_their_registers_are_all_there() -> None:
    counts = dict.fromkeys(("generated", "generated_intel"), 0)
    for path in CORES:
        counts[machine(path)] += sum(
            not writer(path).lost.fullmatch(name) for values in expected(path) for name in values
        )
    assert (len(AMD_CORES), len(INTEL_CORES)) == (19, 35)
    assert counts == {"generated": 5096, "generated_intel": 10674}


@pytest.mark.parametrize("path", INTEL_CORES, ids=lambda path: path.name)
def test_whoever_names_the_processor_gets_the_same_registers(path: Path) -> None:
    given, found = (open_source(path, cpu=cpu) for cpu in (Cpu.catalog("emerald-rapids"), None))
    for a, b in zip(given, found, strict=True):
        assert a.image.layout_source == ("note" if path in KERNEL else "given")
        assert (a.image, a.image.layout, a.findings) == (b.image, b.image.layout, b.findings)


@pytest.mark.parametrize("path", KERNEL, ids=named)
def test_without_the_layout_note_the_layout_is_inferred_and_the_registers_are_the_same(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, renamed = without_layout_note(path)
    assert renamed == 1
    copy = tmp_path / "no-layout.core"
    copy.write_bytes(data)
    _, known = show(capsys, path)
    code, inferred = show(capsys, copy)
    assert code == 0
    assert {thread["layout_source"] for thread in inferred["threads"]} == {"inferred"}
    for before, after in zip(known["threads"], inferred["threads"], strict=True):
        assert (before["tid"], before["registers"]) == (after["tid"], after["registers"])


def without_layout_note(path: Path) -> tuple[bytes, int]:
    """A core's bytes with NT_X86_XSAVE_LAYOUT renamed to a type that nobody knows."""
    data = bytearray(lzma.decompress(path.read_bytes()))
    core = read_core(MemoryStream(bytes(data), path.name))
    notes = [note for note in core.notes() if (note.name, note.type) == ("LINUX", 0x205)]
    for note in notes:
        at = note.offset - len(b"LINUX\0\0\0") - 4
        assert data[at : at + 4] == (0x205).to_bytes(4, "little")
        data[at : at + 4] = (0x7FFF0205).to_bytes(4, "little")
    return bytes(data), len(notes)


@pytest.mark.parametrize("register", ["tilecfg", "tmm0", "tile3_rows"])
def test_a_register_that_gdb_left_out_is_not_known_rather_than_initial(
    register: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = OWN / "generated_intel/cores/x64_amx_2t.gdb18_1.core.xz"
    assert main(["show", str(path), "--register", register]) == 2
    captured = capsys.readouterr()
    assert "not known" in captured.err
    assert "gdb stores nothing of it" in captured.err
    assert captured.out == ""


def test_what_gdb_left_out_is_said_where_it_is_compared_or_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = OWN / "generated_intel/cores"
    by_gdb = str(folder / "x64_permunused_1t.gdb16_3.core.xz")
    said = "SRC017: tmm0-tmm7: not known, since the processor has AMX"
    assert main(["diff", str(folder / "x64_permunused_1t_quit.kernel.core.xz"), by_gdb]) == 0
    assert capsys.readouterr().err.count(said) == 1
    assert main(["convert", by_gdb, str(tmp_path / "out"), "--to-cpu", "emerald-rapids"]) == 0
    assert capsys.readouterr().err.count(said) == 1


def test_gdb_is_not_said_to_lose_tiles_where_the_kernel_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the same notes with the AT_MINSIGSTKSZ of a kernel without AMX, and with none."""
    path = OWN / "generated_intel/cores/x64_amx_2t.gdb13_1.core.xz"
    data = lzma.decompress(path.read_bytes())
    entry, copy = struct.pack("<QQ", 51, 11952), tmp_path / "copy.core"
    assert entry in data
    for other in ((51, 3632), (52, 11952)):
        copy.write_bytes(data.replace(entry, struct.pack("<QQ", *other)))
        _, report = show(capsys, copy)
        assert {finding["id"] for finding in report["threads"][0]["findings"]} == {"SRC001"}


def swapped(data: bytes) -> Layout:
    """The layout that a core states, with its last two components in each other's place."""
    layout = REAL_LAYOUT(data)
    *rest, a, b = layout.places
    places = [*rest, Place(b.component, a.offset, b.size), Place(a.component, a.offset + b.size, a.size)]
    return Layout.from_places(layout.format, places)


def amd(data: bytes) -> Layout:
    """The layout that a core states, as an AMD would have it."""
    return amd_layout(REAL_LAYOUT(data))


REAL_LAYOUT = core_module.stated_layout


@pytest.mark.parametrize(
    ("name", "change", "noticed"),
    [
        ("generated/cores/x64_avx512_3t_quit", swapped, {"zmm16", "zmm31", "zmm0"}),
        ("generated_intel/cores/x64_amx_2t_quit", swapped, {"tilecfg", "tmm0", "tmm7"}),
        (
            "generated_intel/cores/x64_amx_2t_quit",
            amd,
            {"k1", "k7", "zmm0", "zmm15", "zmm16", "zmm31", "pkru"},
        ),
    ],
)
def test_another_layout_is_noticed_by_these_comparisons(
    name: str, change: Any, noticed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = OWN / f"{name}.kernel.core.xz"
    (first, *_) = sorted(open_source(path), key=lambda thread: thread.tid or 0)
    assert wrong(first.image.registers, expected(path)[0]) == []
    monkeypatch.setattr(core_module, "stated_layout", change)
    (first, *_) = sorted(open_source(path), key=lambda thread: thread.tid or 0)
    assert noticed <= set(wrong(first.image.registers, expected(path)[0]))


def test_a_flipped_bit_anywhere_is_noticed_by_these_comparisons() -> None:
    path = OWN / "generated_intel/cores/x64_amx_2t_quit.kernel.core.xz"
    data = lzma.decompress(path.read_bytes())
    (thread, *_) = sorted(core_threads(MemoryStream(data, path.name)), key=lambda thread: thread.tid or 0)
    values, image = stated(expectations(OWN / "generated_intel", "x64_amx_2t")[0]), thread.image
    assert unheld(image.registers, values) == set()
    assert noticed_flips(image, values) == 2 * (3 + 8 + 1 + 3 * 16 + 3 * 16 + 8 + 1 + 1 + 8)
    assert image.xstate_bv >> Component.TILEDATA & 1


def live(program: str) -> list[dict[str, int]]:
    """What gdb 18.1 read of each thread of the live process, in ascending order of their ids."""
    path = OWN / f"generated_intel/oracle/{program}.live_gdb18_1.json.xz"
    threads = sorted(json.loads(lzma.decompress(path.read_bytes())), key=lambda thread: thread["lwp"])
    return [
        {
            name: little(value)
            for name, value in thread["regs"].items()
            if re.fullmatch(r"st\d|f(ctrl|stat|tag|op)|mxcsr|k\d|pkru|zmm\d+", name) and "ERR" not in value
        }
        for thread in threads
    ]


LIVE = sorted(
    path.name.split(".")[0] for path in (OWN / "generated_intel/oracle").glob("*.live_gdb18_1.json.xz")
)


@pytest.mark.parametrize("program", LIVE)
def test_every_register_that_gdb_18_reads_of_the_live_process_is_in_the_kernels_core(program: str) -> None:
    (path,) = (OWN / "generated_intel/cores").glob(f"{program}_quit.kernel.core.xz")
    threads = sorted(open_source(path), key=lambda thread: thread.tid or 0)
    for thread, values in zip(threads, live(program), strict=True):
        assert len(values) >= 30
        assert not AMX_REGISTERS & values.keys()
        assert wrong(thread.image.registers, values) == []
        assert unheld(thread.image.registers, values) == set()
