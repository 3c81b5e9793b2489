"""Minidumps of other people's programs, against what was in the registers."""

from __future__ import annotations

import json
import lzma
import os
import struct
from pathlib import Path

import pytest

from fpstate.arch import Component, mask_of
from fpstate.image import Image
from fpstate.source.open import open_source
from fpstate.source.raw import open_raw

DATA = os.environ.get("FPSTATE_CORPUS")
CORPUS = Path(DATA or ".") / "corpus"
pytestmark = pytest.mark.skipif(
    DATA is None, reason="FPSTATE_CORPUS, the folder of recorded state, is not set: no minidumps"
)

DUMPS = {
    "cet": "breakpad/testdata__tiny-exe-with-cet-xsave.dmp.xz",
    "x86": "breakpad/testdata__tiny-exe-with-cet-xsave-x86.dmp",
    "amd": "breakpad/testdata__write_av_non_canonical.dmp",
    "llvm": "llvm/Inputs__sigsegv.dmp.xz",
}


def dump_bytes(name):
    data = (CORPUS / DUMPS[name]).read_bytes()
    return lzma.decompress(data) if DUMPS[name].endswith(".xz") else data


def in_the_manifest(name):
    entries = json.loads((CORPUS / "manifest.json").read_text())["entries"]
    return next(entry["minidump"] for entry in entries if entry["file"] == DUMPS[name])


@pytest.mark.parametrize("name", DUMPS)
def test_minidumps_have_the_threads_and_windows_control_words(name):
    threads = open_source(CORPUS / DUMPS[name])
    facts = in_the_manifest(name)
    exceptions = {"amd": 1, "llvm": 1}.get(name, 0)  # the manifest counts the exception's context as a thread
    assert len(threads) == facts["threads"] - exceptions
    assert {thread.machine for thread in threads} == {"x86-64" if facts["arch"] == 9 else "i386"}
    assert all(thread.tid for thread in threads)
    for thread in threads:
        if "fctrl" in thread.image.registers:
            assert thread.image.registers["fctrl"] == 0x27F  # what Windows starts threads with
            assert thread.image.registers["mxcsr"] & ~0x3F == 0x1F80


def test_the_shadow_stack_pointer_is_that_of_a_stack_in_the_dump():
    (thread,) = open_source(CORPUS / DUMPS["cet"])
    registers = thread.image.registers
    assert (thread.image.layout_source, thread.findings) == ("note", ())
    assert thread.image.in_use == mask_of(Component.X87, Component.SSE, Component.CET_U)
    assert (registers["u_cet"], registers["pl3_ssp"] % 8) == (1, 0)
    assert registers["xmm0"] == int("deadbeef" * 4, 16)
    pages = {start for start, size in memory_ranges(dump_bytes("cet"))}
    assert registers["pl3_ssp"] >> 32 in {start >> 32 for start in pages}
    assert thread.image.in_use >> Component.AVX & 1 == 0
    assert "ymm0" not in registers


def memory_ranges(data):
    """Start and size of each range that MemoryInfoListStream or MemoryListStream names."""
    count, directory = struct.unpack_from("<II", data, 8)
    for index in range(count):
        kind, _, at = struct.unpack_from("<III", data, directory + 12 * index)
        if kind == 5:
            for entry in range(struct.unpack_from("<I", data, at)[0]):
                yield struct.unpack_from("<QI", data, at + 4 + 16 * entry)
        elif kind == 16:
            header, size, number = struct.unpack_from("<IIQ", data, at)
            for entry in range(number):
                yield struct.unpack_from("<Q16xQ", data, at + header + entry * size)


def test_both_copies_of_mxcsr_agree_where_windows_kept_the_state():
    for name in ("cet", "amd"):
        data = dump_bytes(name)
        for thread in open_source(CORPUS / DUMPS[name]):
            copies = {struct.unpack_from("<I", data, at + 52)[0] for at in contexts(data, thread.tid)}
            assert thread.image.registers["mxcsr"] in copies


def contexts(data, tid):
    count, directory = struct.unpack_from("<II", data, 8)
    for index in range(count):
        kind, _, at = struct.unpack_from("<III", data, directory + 12 * index)
        if kind == 3:
            for entry in range(struct.unpack_from("<I", data, at)[0]):
                number, context = struct.unpack_from("<I40xI", data, at + 4 + 48 * entry)
                if number == tid:
                    yield context
        if kind == 6 and struct.unpack_from("<I", data, at)[0] == tid:
            yield struct.unpack_from("<I", data, at + 164)[0]


def test_on_x86_ymm_and_shadow_stacks_have_a_place_and_fsave_agrees_with_fxsave():
    data = dump_bytes("x86")
    threads = open_source(CORPUS / DUMPS["x86"])
    assert len(threads) == 3
    for thread in threads:
        image = thread.image
        assert image.layout.mask == mask_of(0, 1, Component.AVX, Component.CET_U)
        assert (image.layout_source, thread.findings) == ("inferred", ())
        assert image.xstate_bv == 3
        assert "ymm7" in image.registers
        (context,) = contexts(data, thread.tid)
        (fsave,) = open_raw(data[context + 28 : context + 136])
        for name in ("fctrl", "fstat", *(f"st{index}" for index in range(8))):
            assert fsave.image.registers[name] == image.registers[name], name


def test_state_that_windows_cut_off_or_wiped_is_not_taken_for_registers():
    raised, other = open_source(CORPUS / DUMPS["amd"])
    assert [finding.id for finding in raised.findings] == ["SRC012", "SRC013"]
    assert [finding.id for finding in other.findings] == ["SRC004"]
    assert isinstance(raised.image, Image)
    assert "ymm0" not in raised.image.registers
    (wiped,) = open_source(CORPUS / DUMPS["llvm"])
    assert [finding.id for finding in wiped.findings] == ["SRC014", "SRC012", "SRC013"]
    assert len(wiped.image.registers) == 0
    assert wiped.findings[0].found == 0xAAAAAAAA
