"""Cores of other people's programs, of Linux, FreeBSD and NetBSD, against what other readers say of them."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from pathlib import Path

import pytest

from fpstate.command.main import main
from fpstate.errors import SourceError
from fpstate.image.legacy import FXSAVE_LAYOUT
from fpstate.source.core import core_threads
from fpstate.source.inference import KNOWN, layout_of
from fpstate.source.open import open_source
from fpstate.source.stream import open_stream
from fpstate.source.writer import _NEVER_AMD
from patterns import little

DATA = os.environ.get("FPSTATE_CORPUS")
ROOT = Path(DATA or ".")
pytestmark = pytest.mark.skipif(
    DATA is None, reason="FPSTATE_CORPUS, the folder of recorded state, is not set: no cores of others"
)

NO_REGISTERS = {"fs", "fs_base"}


def load(name):
    return json.loads((ROOT / name).read_text()) if DATA else {}


def cores(oracle):
    return sorted(load(oracle)["cores"]) if DATA else []


def show(capsys, *arguments):
    code = main(["show", "--json", "--all", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def compare(shown, expected):
    """Return the names that differ, and those that are missing; values are compared exactly."""
    wrong = [name for name, value in expected if name in shown and int(shown[name], 16) != value]
    return wrong, [name for name, _ in expected if name not in shown]


@pytest.mark.parametrize("name", cores("corpus/oracle/gdb16_3_registers.json"))
def test_every_register_is_what_gdb_16_reads(name, capsys):
    oracle = load("corpus/oracle/gdb16_3_registers.json")["cores"][name]
    _, report = show(capsys, ROOT / "corpus" / name)
    by_tid = {thread["tid"]: thread for thread in report["threads"]}
    assert by_tid.keys() == {thread["lwp"] for thread in oracle}
    for thread in oracle:
        shown = by_tid[thread["lwp"]]
        values = {n: v for n, v in thread["regs"].items() if n not in NO_REGISTERS and not n.startswith("mm")}
        known = [(name, little(value)) for name, value in values.items() if not value.startswith("ERR")]
        wrong, missing = compare(shown["registers"], known)
        assert (wrong, missing) == ([], [])
        if not known:
            assert shown["registers"] == {}
            assert [finding["id"] for finding in shown["findings"]] == ["SRC003"]


@pytest.mark.parametrize("name", load("corpus/oracle/llvm_register_core_expected.json").get("applies_to", []))
def test_every_register_is_what_llvm_states_for_its_cores(name, capsys):
    oracle = load("corpus/oracle/llvm_register_core_expected.json")
    _, report = show(capsys, ROOT / "corpus" / name)
    (thread,) = report["threads"]
    i386 = thread["machine"] == "i386"
    values = [(name, int(oracle[name], 16)) for name in ("fctrl", "fstat", "ftag_abridged", "fop")]
    values += [(f"st{index}", little(text)) for index, text in enumerate(oracle["st"])]
    if "32-netbsd" not in name:
        values += [("mxcsr", int(oracle["mxcsr"], 16)), ("mxcsr_mask", int(oracle["mxcsrmask"], 16))]
        values += [(f"xmm{i}", little(text)) for i, text in enumerate(oracle["xmm"][: 8 if i386 else 16])]
    assert compare(thread["registers"], values) == ([], [])


def test_threads_of_llvms_linux_core_have_their_own_vectors(capsys):
    oracle = load("corpus/oracle/llvm_register_core_expected.json")["mt"]["x86-64-linux-multithread.core"]
    _, report = show(capsys, ROOT / "corpus/llvm/Inputs__x86-64-linux-multithread.core")
    for thread, expected in zip(report["threads"], oracle, strict=False):
        assert compare(thread["registers"], [(n, little(v)) for n, v in expected.items()]) == ([], [])


def corpus_cores():
    if not DATA:
        return []
    entries = load("corpus/manifest.json")["entries"]
    return [entry for entry in entries if entry["kind"] == "elf-core"]


@pytest.mark.parametrize("entry", corpus_cores(), ids=lambda entry: entry["file"])
def test_every_core_is_read_or_refused_with_a_reason(entry):
    path = ROOT / "corpus" / entry["file"]
    if not any("FPREG" in name or "XSTATE" in name or "0x23" in name for name in entry["note_types"]):
        with pytest.raises(SourceError, match="no floating-point state"):
            open_source(path)
        return
    threads = open_source(path)
    assert {hex(thread.xcr0) for thread in threads if thread.xcr0} == set(entry.get("xcr0_sw") or ())
    assert all(thread.tid is not None for thread in threads)
    assert len({thread.tid for thread in threads}) == len(threads)
    x32 = re.search(r"[.-]x32", path.name)
    for thread in threads:
        assert thread.machine == ("x32" if x32 else entry["machine"].replace("_", "-"))
        assert isinstance(thread.image.in_use, int)


def test_notes_come_early_and_no_more_than_needed_is_inflated():
    path = ROOT / "corpus/drgn/resources__multithreaded.core.xz"
    with closing(open_stream(str(path))) as stream:
        assert len(core_threads(stream)) == 13
    assert stream._start < 1 << 20 < 101232640 < 1 << 27
    assert stream.size is None


def test_every_recorded_user_layout_is_known():
    recorded = load("cpuid_leaf_d.json")["user_layouts"].values()
    assert len(recorded) == 17
    known = {layout_of(row.places, row.xcr0) for row in KNOWN if row.recorded}
    places = {tuple((p.component, p.offset, p.size) for p in layout.places) for layout in known}
    legacy = tuple((p.component, p.offset, p.size) for p in FXSAVE_LAYOUT.places)
    for layout in recorded:
        own = {int(n): (each["offset"], each["size"]) for n, each in layout["components"].items()}
        mask = int(layout["xcr0"], 16)
        assert mask == sum(1 << n for n in own) | 3
        wanted = tuple(sorted(((n, *place) for n, place in own.items()), key=lambda item: item[1]))
        assert legacy + wanted in places
    assert len(places) == 17


def test_no_amd_processor_has_the_flags_that_rule_amd_out():
    records = load("cpuid_leaf_d.json")["records"]
    flagged = [r["vendor"] for r in records if int(r["leaf_1"]["edx"], 16) & _NEVER_AMD]
    assert "AuthenticAMD" not in flagged
    assert "HygonGenuine" not in flagged
    assert flagged.count("GenuineIntel") > 400
