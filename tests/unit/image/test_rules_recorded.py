"""Answers that Linux and KVM gave on another machine (Zen 4, XCR0 = E7) are the ones foretold."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch import Cpu
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Severity
from fpstate.image.rules import check, predict

XSTATE_BV, XCOMP_BV, MXCSR = 512, 520, 24
COMPACTED = 1 << 63 | 0xE7


@pytest.fixture(scope="module")
def generated() -> Path:
    folder = os.environ.get("FPSTATE_CORPUS")
    if not folder:
        pytest.skip("FPSTATE_CORPUS is not set: no recorded states to read")
    return Path(folder) / "generated"


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.from_cpu(replace(Cpu.catalog("zen4"), enabled_xcr0=0xE7))


@pytest.fixture(scope="module")
def regset(generated: Path) -> bytes:
    return (generated / "ptrace" / "x64_avx512_3t.t0.xstate.bin").read_bytes()


def put(offset: int, value: int, size: int = 8) -> tuple[int, bytes]:
    return offset, value.to_bytes(size, "little")


PTRACE_CASES = {
    "unchanged": put(XSTATE_BV, 0xE7),
    "xstate_bv=0": put(XSTATE_BV, 0),
    "xstate_bv bit 3 (MPX, unsupported)": put(XSTATE_BV, 0xEF),
    "xstate_bv bit 9 (PKRU, unsupported)": put(XSTATE_BV, 0x2E7),
    "xstate_bv bit 11 (CET_U supervisor)": put(XSTATE_BV, 0x8E7),
    "xstate_bv bit 63": put(XSTATE_BV, 1 << 63 | 0xE7),
    "xcomp_bv=compacted": put(XCOMP_BV, COMPACTED),
    "xcomp_bv=1": put(XCOMP_BV, 1),
    "header byte 528 = 1": put(528, 1, 1),
    "header byte 568 = 1": put(568, 1, 1),
    "mxcsr reserved bit 16 set": put(MXCSR, 0x11F80, 4),
    "mxcsr bit 17 (AMD misaligned)": put(MXCSR, 0x21F80, 4),
    "mxcsr=0": put(MXCSR, 0, 4),
    "mxcsr_mask changed to 0": put(MXCSR + 4, 0, 4),
    "mxcsr_mask all ones": put(MXCSR + 4, 0xFFFFFFFF, 4),
    "sw_reserved xcr0 changed": put(464, 7, 1),
    "fcw reserved bits": put(0, 0xFFFF, 2),
    "ftw=0": put(4, 0, 1),
    "st0 exponent reserved bytes 42..47": put(42, 0x0101, 2),
    "bytes 416..463 nonzero": put(416, 0x5A5A, 8),
    "legacy tail 472 nonzero": put(472, 0x5A5A, 8),
}
KVM_CASES = {
    "unchanged": put(XSTATE_BV, 0xE7),
    "bv bit9 (unsupported)": put(XSTATE_BV, 0x2E7),
    "bv bit 11 CET_U": put(XSTATE_BV, 0x8E7),
    "bv bit 63": put(XSTATE_BV, 1 << 63 | 0xE7),
    "xcomp_bv compacted": put(XCOMP_BV, COMPACTED),
    "hdr 528": put(528, 1, 1),
    "mxcsr bit16": put(MXCSR, 0x11F80, 4),
    "mxcsr bit17": put(MXCSR, 0x21F80, 4),
    "sw464": put(464, 7, 1),
}


def changed(image: bytes, change: tuple[int, bytes]) -> bytes:
    offset, value = change
    return image[:offset] + value + image[offset + len(value) :]


def answered(record: dict[str, Any]) -> str:
    return errno.errorcode[record["errno"]] if record["ret"] < 0 else ""


def test_setregset_answered_as_foretold(generated, target, regset):
    records = json.loads((generated / "ptrace" / "setregset_behaviour.json").read_text())
    seen = 0
    for record in records:
        if record["op"] != "SETREGSET":
            continue
        case = record["case"]
        data = (
            regset[: int(case.split()[1])] if case.startswith("len ") else changed(regset, PTRACE_CASES[case])
        )
        verdict = predict(data, Consumer.PTRACE, target)
        assert verdict.answer == answered(record), case
        if "readback_mxcsr" in record and verdict.accepted:
            assert verdict.reported_mxcsr == int(record["readback_mxcsr"], 16), case
            assert verdict.loaded == int(record["readback_xstate_bv"], 16), case
        seen += 1
    assert seen == 9 + len(PTRACE_CASES)


def test_set_xsave_answered_as_foretold(generated, target, regset):
    lines = (generated / "kvm" / "kvm.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    cases = [record for record in records if record["op"] == "KVM_SET_XSAVE" and "case" in record]
    assert {record["case"] for record in cases} == set(KVM_CASES)
    for record in cases:
        data = changed(regset.ljust(4096, b"\0"), KVM_CASES[record["case"]])
        assert predict(data, Consumer.KVM, target).answer == answered(record), record["case"]


def test_frames_that_the_kernel_made_are_taken_whole(generated, target):
    paths = sorted((generated / "sigframe").glob("x64_*.fpstate.bin"))
    assert len(paths) == 3
    for path in paths:
        data = path.read_bytes()
        verdict = predict(data, Consumer.SIGRETURN, target)
        assert str(verdict) == "loaded"
        assert not verdict.fx_only
        assert verdict.loaded == int.from_bytes(data[512:520], "little")
        severe = [f for f in check(data, Consumer.SIGRETURN, target) if f.severity is not Severity.NOTE]
        assert not severe, path.name


def test_what_the_processor_saved_it_would_load(generated, target):
    for path in sorted((generated / "raw").glob("*_xsave*64_*.bin")):
        data = path.read_bytes()
        saved = int(path.stem.partition("rfbm")[2], 16)
        asked = target.with_(requested=saved)
        assert predict(data, Consumer.XRSTOR, asked).accepted, path.name
