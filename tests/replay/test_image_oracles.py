"""Every recorded answer to an image is what the rules foretell; each truth, put wrong again, is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from image_replay import check_file, target_of
from register_letters import COMPONENTS
from replay_report import Report
from restore_judge import Restored

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import USER_DYNAMIC
from fpstate.image import answer, outcome, subject
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import Verdict, predict
from recorded import INTEL, Case, OracleFile, cpu_of

IMAGE_FILES = [name for name in INTEL.names() if not name.startswith("sequences")]
CASES = 94_922
FEW = 6000
PKRU, TILECFG, TILES = (mask_of(c) for c in (Component.PKRU, Component.TILECFG, Component.TILEDATA))
FRAMES = ("sigreturn64-amx", "sigreturn64-noamx", "sigreturn32-amx", "sigreturn32-noamx")
XRSTOR = ("xrstor-amx", "xrstor-noamx")


@cache
def file(name: str) -> OracleFile:
    return INTEL.read(name)


def few(name: str) -> OracleFile:
    """The first cases of a file: enough for a negative control."""
    return replace(file(name), cases=file(name).cases[:FEW])


def recorded_target(name: str) -> Target:
    return target_of(file(name).header, INTEL.machine)


def otherwise(name: str, **changes: Any) -> Report:
    """Foretell for a target that differs in something."""
    return check_file(few(name), INTEL.machine, target=recorded_target(name).with_(**changes))


def retold(name: str, change: Callable[[Verdict], Verdict]) -> Report:
    """Foretell with verdicts that were changed."""

    def foretell(*arguments: Any, **keywords: Any) -> Verdict:
        return change(predict(*arguments, **keywords))

    return check_file(few(name), INTEL.machine, foretell=foretell)


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_every_answer_is_foretold(name):
    report = check_file(file(name), INTEL.machine)
    assert report.disagreements == 0, report.told
    assert report.cases + report.skipped == len(file(name).cases)
    assert report.skipped <= report.cases // 100
    refused = report.counts["refused"]
    assert report.cases // 20 < refused < report.cases - report.cases // 20


def test_no_file_and_no_case_is_left_out():
    assert sum(len(file(name).cases) for name in IMAGE_FILES) == CASES
    assert {file(name).kind for name in IMAGE_FILES} == {"xrstor", "sigreturn", "ptrace", "kvm"}


def test_the_processor_of_the_recording_is_that_of_the_catalog():
    recorded, known = cpu_of(INTEL.machine), Cpu.catalog("emerald-rapids")
    for field in ("vendor", "family", "model", "stepping", "xcr0", "xss", "mxcsr_mask"):
        assert getattr(recorded, field) == getattr(known, field)
    assert recorded.geometry == known.geometry
    assert {"PKU", "AMX_TILE", "XFD", "XSAVEC", "XSAVES", "LA57"} <= recorded.features


@pytest.mark.parametrize(
    "name", ["xrstor-amx", "sigreturn64-amx", "sigreturn32-noamx", "ptrace64-noamx", "ptrace32"]
)
def test_a_tilecfg_that_is_loaded_as_it_stands_is_noticed(monkeypatch, name):
    monkeypatch.setattr(outcome, "dropped_tilecfg", lambda subject: None)
    assert check_file(few(name), INTEL.machine).disagreements


@pytest.mark.parametrize("name", ["ptrace64-amx", "ptrace32"])
def test_a_readback_without_the_tilecfg_that_was_not_loaded_is_noticed(name):
    assert retold(name, lambda verdict: replace(verdict, reported=verdict.loaded)).disagreements


def test_a_kvm_that_takes_tilecfg_without_tiles_is_noticed():
    target = recorded_target("kvm")
    assert not target.kvm_xcr0 & (TILECFG | TILES)
    assert otherwise("kvm", kvm_xcr0=target.kvm_xcr0 | TILECFG).disagreements


@pytest.mark.parametrize("name", XRSTOR)
def test_absent_components_that_are_not_reached_are_noticed(name):
    assert otherwise(name, reads_absent=False).disagreements


@pytest.mark.parametrize("name", XRSTOR)
def test_a_header_that_is_judged_before_memory_is_found_missing_is_noticed(name):
    assert otherwise(name, header_first=True).disagreements


ORDERS = {
    "memory before the address": ("XS001", "XS002", "XS006", *answer._HEADER, *answer._REGISTERS),
    "MXCSR before memory": ("XS006", "XS001", "XS017", "XS002", *answer._HEADER, "XS018", "XS019"),
    "MXCSR before XFD": ("XS006", "XS001", "XS002", *answer._HEADER, "XS017", "XS018", "XS019"),
    "XFD before the header": ("XS006", "XS001", "XS002", "XS018", *answer._HEADER, "XS017", "XS019"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_another_order_of_faults_is_noticed(monkeypatch, order):
    monkeypatch.setattr(answer, "_MEMORY_FIRST", order)
    assert sum(check_file(few(name), INTEL.machine).disagreements for name in XRSTOR)


@pytest.mark.parametrize("name", XRSTOR)
def test_a_refused_restore_that_changes_nothing_is_noticed(name):
    assert otherwise(name, partial_restore=False).disagreements


@pytest.mark.parametrize("name", XRSTOR)
def test_a_refused_restore_that_makes_pkru_initial_is_noticed(name):
    def change(verdict: Verdict) -> Verdict:
        partial = verdict.refusals and (verdict.loaded or verdict.initialised)
        return replace(verdict, pkru=0) if partial else verdict

    assert retold(name, change).disagreements


@pytest.mark.parametrize("name", FRAMES)
def test_a_refused_frame_that_leaves_the_registers_is_noticed(name):
    def change(verdict: Verdict) -> Verdict:
        kept = {"kept": verdict.initialised, "initialised": 0, "mxcsr": None, "pkru": None}
        return replace(verdict, **kept) if verdict.refusals else verdict

    assert retold(name, change).disagreements


@pytest.mark.parametrize("value", [None, 0x55555554], ids=["kept", "default"])
@pytest.mark.parametrize("name", FRAMES)
def test_another_pkru_after_a_frame_without_it_is_noticed(name, value):
    def change(verdict: Verdict) -> Verdict:
        return replace(verdict, pkru=value) if verdict.accepted and verdict.initialised & PKRU else verdict

    assert retold(name, change).disagreements


@pytest.mark.parametrize("name", FRAMES)
def test_another_pkru_after_a_refused_frame_or_none_is_noticed(monkeypatch, name):
    monkeypatch.setattr(outcome, "INIT_PKRU", 0)
    assert check_file(few(name), INTEL.machine).disagreements


@pytest.mark.parametrize("name", ["sigreturn32-amx", "sigreturn32-noamx"])
def test_a_32_bit_frame_that_is_taken_for_a_64_bit_one_is_noticed(name):
    def foretell(data: bytes, _: Consumer, target: Target, *, address: int) -> Verdict:
        return predict(data[112:], Consumer.SIGRETURN, target, address=address)

    report = check_file(few(name), INTEL.machine, foretell=foretell)
    assert report.disagreements > report.cases // 20


@pytest.mark.parametrize("name", ["sigreturn32-amx", "sigreturn32-noamx"])
def test_an_x87_that_comes_from_the_fxsave_part_is_noticed(monkeypatch, name):
    part = staticmethod(lambda whole, start: bytes(whole[start : start + 160]))
    monkeypatch.setattr(Restored, "x87_of", part)
    assert check_file(few(name), INTEL.machine).disagreements


@pytest.mark.parametrize("name", ["sigreturn64-amx", "sigreturn64-noamx"])
def test_a_compacted_frame_that_is_refused_or_read_as_standard_is_noticed(name):
    target = recorded_target(name)
    plain = replace(target.cpu, features=target.cpu.features - {"XSAVEC"})
    refusing = check_file(few(name), INTEL.machine, target=replace(target, cpu=plain))
    assert refusing.disagreements

    def foretell(data: bytearray, *arguments: Any, **keywords: Any) -> Verdict:
        standard = data[:520] + bytes(8) + data[528:]
        return predict(standard if data[527:528] >= b"\x80" else data, *arguments, **keywords)

    assert check_file(few(name), INTEL.machine, foretell=foretell).disagreements


@pytest.mark.parametrize("name", FRAMES)
def test_xfeatures_that_bound_nothing_are_noticed(monkeypatch, name):
    every = property(lambda self: 3 if self.fx_only else self.target.user_xfeatures)
    monkeypatch.setattr(subject.Subject, "rfbm", every)
    assert check_file(few(name), INTEL.machine).disagreements


def without_or_with_tiles(name: str) -> Iterator[Target]:
    for permitted, used in ((0, 0), (USER_DYNAMIC, 0), (USER_DYNAMIC, USER_DYNAMIC)):
        target = Target.from_cpu(cpu_of(INTEL.machine), permitted=permitted, used=used)
        if target != recorded_target(name):
            yield target


@pytest.mark.parametrize(
    "name",
    [*XRSTOR, "sigreturn64-amx", "sigreturn64-noamx", "sigreturn32-amx", "ptrace64-amx", "ptrace64-noamx"],
)
def test_another_permission_is_noticed(name):
    """None, not used yet, and used: the last two are the same for XRSTOR, the first two for frames and ptrace."""
    noticed = [
        check_file(few(name), INTEL.machine, target=target).disagreements
        for target in without_or_with_tiles(name)
    ]
    assert any(noticed)


def test_tiles_that_are_used_are_noticed_where_they_were_not_yet():
    target = Target.from_cpu(cpu_of(INTEL.machine), permitted=USER_DYNAMIC)
    assert check_file(few("ptrace64-unused"), INTEL.machine, target=target).disagreements


@pytest.mark.parametrize("name", ["fpregs64", "fpregs64-amx", "fpregs32"])
def test_an_older_request_that_makes_the_rest_initial_is_noticed(name):
    def change(verdict: Verdict) -> Verdict:
        return replace(verdict, initialised=verdict.kept, kept=0)

    assert retold(name, change).disagreements


@pytest.mark.parametrize("name", ["kvm", "kvm-nocpuid"])
def test_a_kvm_set_fpu_that_brings_mxcsr_is_noticed(name):
    def foretell(data: bytes, consumer: Consumer, target: Target) -> Verdict:
        verdict = predict(data, consumer, target)
        if consumer is Consumer.KVM_FPU:
            return replace(verdict, reported_mxcsr=int.from_bytes(data[408:412], "little"))
        return verdict

    assert check_file(file(name), INTEL.machine, foretell=foretell).disagreements


def test_a_guest_without_cpuid_that_sees_everything_is_noticed():
    target = recorded_target("kvm-nocpuid")
    assert otherwise("kvm-nocpuid", guest_xcr0=target.kvm_xcr0).disagreements


@pytest.mark.parametrize("bits", [48, 64])
def test_another_width_of_fip_is_noticed(bits):
    machine = INTEL.machine | {"linear_address_bits": bits}
    assert check_file(few("xrstor-amx"), machine).disagreements


WRONG = 0xBAD
"""A digest of nothing in these files."""


def falsified(name: str, case: Case) -> Iterator[tuple[str, Case]]:
    """Yield a case with each part of its answer changed in turn."""
    answer = case["r"]
    for key in ("g", "b", "v"):
        for index, found in enumerate(answer.get(key, ())):
            number = index - ({"g": 0, "b": 1, "v": 2}[key])
            if (key == "v" and index == 0) or number in unread(name, key):
                continue
            changed = [*answer[key]]
            changed[index] = found ^ 0x40 if isinstance(found, int) else WRONG
            yield f"{key}[{index}]", case | {"r": answer | {key: changed}}
    if "e" in answer:
        yield "e", case | {"r": answer | {"e": 22 if answer["e"] == 0 else 0}}
    if "f" in answer:
        yield "no fault", case | {"r": {key: value for key, value in answer.items() if key != "f"}}
        yield "another fault", case | {"r": answer | {"f": [8, 1, 16]}}
    elif "g" in answer:
        yield "a fault", case | {"r": answer | {"f": [11, 128, 13]}}


def unread(name: str, key: str) -> tuple[int, ...]:
    """Entries of a register list that programs outside 64-bit mode cannot read: ZMM16 to 31."""
    in_32_bit_mode = file(name).header.get("mode") == 32 and key != "b"
    return (2 + 1 + COMPONENTS.index(Component.HI16_ZMM),) if in_32_bit_mode else ()


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_an_answer_that_was_changed_is_noticed_wherever_that_was(name):
    """The control of the comparison itself: nothing of an answer is passed over."""
    changes = [
        change
        for case in file(name).cases[:: len(file(name).cases) // 40]
        for change in falsified(name, case)
    ]
    wrong = replace(file(name), cases=[case for _, case in changes])
    report = check_file(wrong, INTEL.machine, most=len(changes))
    unnoticed = set(range(len(changes))) - set(report.numbers)
    assert [changes[number] for number in sorted(unnoticed)] == []
    assert len(changes) > 60
