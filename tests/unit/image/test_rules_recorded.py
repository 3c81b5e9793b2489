"""Answers that Linux and KVM gave on two other machines (Zen 4, Emerald Rapids) are the ones foretold."""

import errno
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.component import AMX, USER_DYNAMIC
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Severity
from fpstate.image.rules import check, predict
from recorded import OWN

XSTATE_BV, XCOMP_BV, MXCSR = 512, 520, 24
PKRU, TILECFG, TILEDATA = 2688, 2752, 2816
"""Where Intel keeps them in the standard format."""

Change = tuple[int, bytes]


@dataclass(frozen=True)
class Machine:
    """A recorded machine: its processor with XCR0, the regset that was changed, and what changes were made."""

    folder: Path
    cpu: Cpu
    regset_name: str
    ptrace_cases: dict[str, Change]
    kvm_cases: dict[str, Change]

    @property
    def xcr0(self) -> int:
        assert self.cpu.enabled_xcr0 is not None
        return self.cpu.enabled_xcr0

    def target(self, *, tiles: bool = False) -> Target:
        """The machine and a thread on it, with ``tiles`` one that has used them."""
        return Target.from_cpu(self.cpu, permitted=USER_DYNAMIC if tiles else 0)

    @cached_property
    def regset(self) -> bytes:
        return (self.folder / "ptrace" / self.regset_name).read_bytes()

    @cached_property
    def kvm_image(self) -> bytes:
        """What was set before each case of KVM's: the regset without what KVM gave no guest."""
        data = changed(self.regset, put(XSTATE_BV, self.xcr0 & ~AMX))
        return data[:4096].ljust(4096, b"\0")


def put(offset: int, value: int, size: int = 8) -> Change:
    return offset, value.to_bytes(size, "little")


def changed(image: bytes, change: Change) -> bytes:
    offset, value = change
    return image[:offset] + value + image[offset + len(value) :]


def answered(record: dict[str, Any]) -> str:
    return errno.errorcode[record["errno"]] if record["ret"] < 0 else ""


def ptrace_cases(xcr0: int) -> dict[str, Change]:
    """The changes that were made on both machines."""
    return {
        "unchanged": put(XSTATE_BV, xcr0),
        "xstate_bv=0": put(XSTATE_BV, 0),
        "xstate_bv bit 3 (MPX, unsupported)": put(XSTATE_BV, xcr0 | 8),
        "xstate_bv bit 11 (CET_U supervisor)": put(XSTATE_BV, xcr0 | 0x800),
        "xstate_bv bit 63": put(XSTATE_BV, 1 << 63 | xcr0),
        "xcomp_bv=compacted": put(XCOMP_BV, 1 << 63 | xcr0),
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


AMD_CASES = {
    **ptrace_cases(0xE7),
    "xstate_bv bit 9 (PKRU, unsupported)": put(XSTATE_BV, 0x2E7),
}
ILLEGAL_TILECFG = {
    "tilecfg palette 2": put(TILECFG, 2, 1),
    "tilecfg palette 0, rest left": put(TILECFG, 0, 1),
    "tilecfg rows[0]=17": put(TILECFG + 48, 17, 1),
    "tilecfg colsb[0]=65": put(TILECFG + 16, 65, 2),
    "tilecfg reserved byte 2": put(TILECFG + 2, 1, 1),
}
"""Taken and read back as set, while the register becomes initial."""
INTEL_CASES = {
    **ptrace_cases(0x602E7),
    **ILLEGAL_TILECFG,
    "tilecfg start_row 1": put(TILECFG + 1, 1, 1),
    "xstate_bv bit 10 (PASID supervisor)": put(XSTATE_BV, 0x606E7),
    "xstate_bv bit 19 (APX, unsupported)": put(XSTATE_BV, 0xE02E7),
    "xstate_bv bit 9 cleared (PKRU absent)": put(XSTATE_BV, 0x600E7),
    "xstate_bv bit 17 cleared": put(XSTATE_BV, 0x402E7),
    "xstate_bv bit 18 cleared": put(XSTATE_BV, 0x202E7),
    "xstate_bv bits 17 and 18 cleared": put(XSTATE_BV, 0x2E7),
    "xstate_bv bit 17 set": put(XSTATE_BV, 0x602E7),
    "xstate_bv bit 18 set": put(XSTATE_BV, 0x602E7),
    "xstate_bv bits 17 and 18 set": put(XSTATE_BV, 0x602E7),
    "pkru=0": put(PKRU, 0, 4),
    "pkru=0x55555554": put(PKRU, 0x55555554, 4),
    "pkru=0xfffffffc": put(PKRU, 0xFFFFFFFC, 4),
    "pkru upper dword nonzero": put(PKRU + 4, 0x5A5A, 4),
    "tile byte 0 changed": put(TILEDATA, 0xA5, 1),
    "bytes 2696..2703 nonzero (hole)": put(2696, 0x5A5A, 8),
    "bytes 832..839 nonzero (hole)": put(832, 0x5A5A, 8),
}


def kvm_cases(mask: int) -> dict[str, Change]:
    return {
        "unchanged": put(XSTATE_BV, mask),
        "bv bit 11 CET_U": put(XSTATE_BV, mask | 0x800),
        "bv bit 63": put(XSTATE_BV, 1 << 63 | mask),
        "xcomp_bv compacted": put(XCOMP_BV, 1 << 63 | mask),
        "hdr 528": put(528, 1, 1),
        "mxcsr bit16": put(MXCSR, 0x11F80, 4),
        "mxcsr bit17": put(MXCSR, 0x21F80, 4),
        "sw464": put(464, 7, 1),
    }


ZEN4 = Machine(
    OWN / "generated",
    replace(Cpu.catalog("zen4"), enabled_xcr0=0xE7),
    "x64_avx512_3t.t0.xstate.bin",
    AMD_CASES,
    {**kvm_cases(0xE7), "bv bit9 (unsupported)": put(XSTATE_BV, 0x2E7)},
)
EMERALD = Machine(
    OWN / "generated_intel",
    replace(Cpu.catalog("emerald-rapids"), enabled_xcr0=0x602E7),
    "x64_amx_2t.t0.xstate.bin",
    INTEL_CASES,
    {
        **kvm_cases(0x2E7),
        "bv bit 9 cleared": put(XSTATE_BV, 0xE7),
        "bv bits 17 18 (AMX)": put(XSTATE_BV, 0x602E7),
        "bv bit 17 only": put(XSTATE_BV, 0x202E7),
        "bv bit 3 MPX": put(XSTATE_BV, 0x2EF),
    },
)
MACHINES = pytest.mark.parametrize("machine", [ZEN4, EMERALD], ids=["zen4", "emerald-rapids"])


@MACHINES
def test_setregset_answered_as_foretold(machine: Machine) -> None:
    records = json.loads((machine.folder / "ptrace" / "setregset_behaviour.json").read_text())
    target = machine.target(tiles=True)
    lengths, seen = 0, set()
    for record in records:
        if record["op"] != "SETREGSET":
            continue
        case = record["case"]
        if case.startswith("len "):
            length = int(case.split()[1])
            data = machine.regset[:length].ljust(length, b"\0")
            lengths += 1
        else:
            data = changed(machine.regset, machine.ptrace_cases[case])
            seen.add(case)
        verdict = predict(data, Consumer.PTRACE, target)
        assert verdict.answer == answered(record), case
        if "readback_mxcsr" in record and verdict.accepted:
            assert verdict.reported_mxcsr == int(record["readback_mxcsr"], 16), case
            assert reported(verdict, case) == int(record["readback_xstate_bv"], 16), case
            if "readback_pkru" in record:
                layout = Layout.standard(machine.cpu, machine.xcr0)
                pkru = Image(data, layout).registers["pkru"]
                assert pkru == int(record["readback_pkru"], 16), case
    assert seen == set(machine.ptrace_cases)
    assert lengths == {"zen4": 9, "emerald-rapids": 15}[machine.cpu.name]


def reported(verdict: Any, case: str) -> int:
    """What GETREGSET says is present; of TILECFG that is what was set, whatever the register got."""
    loaded: int = verdict.loaded
    return loaded | 1 << Component.TILECFG if case in ILLEGAL_TILECFG else loaded


@MACHINES
def test_set_xsave_answered_as_foretold(machine: Machine) -> None:
    lines = (machine.folder / "kvm" / "kvm.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    cases = [record for record in records if record["op"] == "KVM_SET_XSAVE" and "case" in record]
    assert {record["case"] for record in cases} == set(machine.kvm_cases)
    for record in cases:
        data = changed(machine.kvm_image, machine.kvm_cases[record["case"]])
        assert predict(data, Consumer.KVM, machine.target()).answer == answered(record), record["case"]


@MACHINES
def test_frames_that_the_kernel_made_are_taken_whole(machine: Machine) -> None:
    paths = sorted((machine.folder / "sigframe").glob("x64_*.fpstate.bin"))
    assert len(paths) == {"zen4": 3, "emerald-rapids": 8}[machine.cpu.name]
    for path in paths:
        data = path.read_bytes()
        used = bool(int.from_bytes(data[472:480], "little") & USER_DYNAMIC)
        target = machine.target(tiles=used)
        verdict = predict(data, Consumer.SIGRETURN, target)
        assert str(verdict) == "loaded", path.name
        assert not verdict.fx_only
        assert verdict.loaded == int.from_bytes(data[512:520], "little")
        severe = [f for f in check(data, Consumer.SIGRETURN, target) if f.severity is not Severity.NOTE]
        assert not severe, path.name


def test_a_frame_with_tiles_is_not_taken_by_a_thread_that_has_not_used_them() -> None:
    data = (EMERALD.folder / "sigframe" / "x64_sig_amx.fpstate.bin").read_bytes()
    verdict = predict(data, Consumer.SIGRETURN, EMERALD.target())
    assert verdict.fx_only
    assert [f.id for f in check(data, Consumer.SIGRETURN, EMERALD.target())][:1] == ["XS022"]


@MACHINES
def test_what_the_processor_saved_it_would_load(machine: Machine) -> None:
    paths = sorted((machine.folder / "raw").glob("*_xsave*64_*.bin"))
    assert len(paths) >= 20
    for path in paths:
        data = path.read_bytes()
        saved = int(path.stem.partition("rfbm")[2], 16)
        asked = machine.target(tiles=True).with_(requested=saved)
        assert predict(data, Consumer.XRSTOR, asked).accepted, path.name
