"""Sequences and restores that an Intel processor did, foretold by the model of it; wrong models are caught."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import MappingProxyType

import pytest
import restore_replay
import sequence_replay
from replay_report import Report
from sequence_operations import PERFORM

from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.model import Behaviour, amx, instruction, register_file, restore, x87
from fpstate.engine.model.machine import Machine
from fpstate.engine.model.register_file import RegisterFile
from recorded import INTEL, OracleFile, cpu_of

CPU = Cpu.catalog("emerald-rapids")
BEHAVIOUR = Behaviour.of(CPU)
SEQUENCES = {
    "sequences-amx": 12_000,
    "sequences-noamx": 10_000,
    "sequences-firstuse": 1_000,
    "sequences-x87": 3_000,
}
RESTORES = {"xrstor-amx": 25_000, "xrstor-noamx": 20_000}


@cache
def recording(name: str) -> OracleFile:
    return INTEL.read(name)


def check(name: str, behaviour: Behaviour = BEHAVIOUR, *, most: int = 1000) -> Report:
    replay = sequence_replay if name in SEQUENCES else restore_replay
    return replay.check_file(recording(name), INTEL.machine, behaviour, most=most)


@cache
def genuine(name: str) -> Report:
    return check(name)


def test_what_the_recorder_wrote_of_its_processor_is_what_the_catalog_has():
    cpu = cpu_of(INTEL.machine)
    assert Behaviour.of(cpu) == BEHAVIOUR
    assert (cpu.xcr0, cpu.xss, cpu.geometry) == (CPU.xcr0, CPU.xss, CPU.geometry)


def test_every_recording_of_instructions_is_replayed():
    assert {*SEQUENCES, *RESTORES} == {*INTEL.names("sequences"), *INTEL.names("xrstor")}


@pytest.mark.parametrize("name", [*SEQUENCES, *RESTORES])
def test_the_model_foretells_every_case(name):
    report = genuine(name)
    print(name, report.cases, report.skipped, dict(report.counts))
    assert not report.disagreements, report.told
    assert report.cases + report.skipped == (SEQUENCES | RESTORES)[name]
    assert report.skipped == sum(1 for case in recording(name).cases if case.get("varies"))
    assert report.skipped <= report.cases // 50


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_is_left_to_the_processor_is_little(name):
    """XINUSE goes by the table of who sets it and who clears it; XSAVEOPT nearly always leaves out what it can."""
    counts = genuine(name).counts
    assert counts["in-use bits"] > 80_000
    assert counts["in-use bits chosen otherwise"] <= counts["in-use bits"] // 10_000
    assert counts["optimisation not taken"] <= counts["xsaveopt64"] // 100


def test_the_sequences_contain_every_operation():
    counts = sum((genuine(name).counts for name in SEQUENCES), start=Counter())
    assert not {name for name in PERFORM if not counts[name]}


# Recordings that are wrong on purpose


def tampered(name: str, change: Callable[[dict], bool], cases: int) -> tuple[int, Report]:
    """Change an answer in each of the first cases that can be changed so, and replay these alone."""
    file = recording(name)
    changed = []
    for case in file.cases:
        wrong = copy.deepcopy(case)
        if not case.get("varies") and change(wrong):
            changed.append(wrong)
        if len(changed) == cases:
            break
    wrong_file = dataclasses.replace(file, cases=changed)
    return len(changed), sequence_replay.check_file(wrong_file, INTEL.machine, BEHAVIOUR)


def _last_save(case: dict) -> bool:
    answer = case["r"][-1]["s"]
    if "a" in answer:
        answer["a"] ^= 1
    return "a" in answer


def _in_use_clear(case: dict) -> bool:
    """Says of k registers that they are initial, after one was loaded with something."""
    for operation, answer in zip(case["o"], case["r"], strict=True):
        if operation[0] == "kmovq" and answer and "x" in answer and operation[2] < 40_000:
            answer["x"] &= ~mask_of(Component.OPMASK)
            return True
    return False


def _result(case: dict) -> bool:
    answer = next((answer for answer in case["r"] if answer and "v" in answer), None)
    if answer:
        answer["v"] ^= 0x10
    return answer is not None


def _fault(case: dict) -> bool:
    answer = next((answer for answer in case["r"] if answer and "f" in answer), None)
    if answer:
        del answer["f"]
    return answer is not None


def _pkru(case: dict) -> bool:
    answer = next((answer for answer in case["r"] if answer and "k" in answer), None)
    if answer:
        answer["k"] ^= 0x100
    return answer is not None


@pytest.mark.parametrize("change", [_last_save, _in_use_clear, _result, _fault, _pkru])
def test_every_kind_of_answer_counts(change):
    changed, report = tampered("sequences-amx", change, 200)
    assert changed >= 30
    assert report.disagreements == changed


# Models that are wrong on purpose: what was believed before, and what one could believe


def _changed(**fields: object) -> Callable[[pytest.MonkeyPatch], Behaviour]:
    return lambda monkeypatch: dataclasses.replace(BEHAVIOUR, **fields)


def _loaded_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    loaded = {component: take for component, take in restore.LOADED.items() if component != Component.TILECFG}
    monkeypatch.setattr(restore, "LOADED", MappingProxyType(loaded))
    return BEHAVIOUR


def _by_value(*components: int) -> Callable[[pytest.MonkeyPatch], Behaviour]:
    def change(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
        monkeypatch.setattr(register_file, "_BY_VALUE", mask_of(*components))
        return BEHAVIOUR

    return change


def _mxcsr_before_xfd(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = restore.xrstor

    def xrstor(machine: Machine, *others):
        xfd, file = machine.xfd, machine.file
        machine.xfd, machine.file = 0, file.copy()
        try:
            right(machine, *others)
        finally:
            machine.xfd, machine.file = xfd, file
        right(machine, *others)

    monkeypatch.setattr(restore, "xrstor", xrstor)
    return BEHAVIOUR


def _header_before_length(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = restore.check_length

    def check_length(area, needed, rule):
        if rule == "XS002" and area[527] & 0x80:
            restore._check_compacted(area, int.from_bytes(area[512:520], "little"), CPU.xcr0)
        elif rule == "XS002":
            restore._check_standard(_MACHINE, area, *restore.HEADER.unpack_from(area, 512))
        right(area, needed, rule)

    monkeypatch.setattr(restore, "check_length", check_length)
    return BEHAVIOUR


_MACHINE = Machine(CPU)
_MACHINE.xcr0 = CPU.xcr0


def _no_halves(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    """One bit a component, and a restore outside 64-bit mode sets or clears it."""
    monkeypatch.setattr(RegisterFile, "put_lower", RegisterFile.put)
    return BEHAVIOUR


def _initial_means_all(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = RegisterFile.initialise_lower

    def initialise_lower(file: RegisterFile, component: int) -> None:
        right(file, component)
        file.upper &= ~(1 << component)

    monkeypatch.setattr(RegisterFile, "initialise_lower", initialise_lower)
    return BEHAVIOUR


def _fxrstor_by_value(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = restore.fxrstor

    def fxrstor(machine: Machine, *others):
        right(machine, *others)
        machine.file.in_use &= machine.file.not_initial() | ~3

    monkeypatch.setattr(restore, "fxrstor", fxrstor)
    return BEHAVIOUR


def _ldmxcsr_leaves_sse(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = instruction.ldmxcsr

    def ldmxcsr(machine: Machine, mxcsr: int) -> None:
        before = machine.file.in_use
        right(machine, mxcsr)
        machine.file.in_use = before

    monkeypatch.setattr(instruction, "ldmxcsr", ldmxcsr)
    return BEHAVIOUR


def _fninit_initialises(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = x87.fninit

    def fninit(machine: Machine) -> None:
        right(machine)
        machine.file.in_use &= ~1

    monkeypatch.setattr(x87, "fninit", fninit)
    return BEHAVIOUR


def _vzeroall_leaves_sse(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    monkeypatch.setattr(
        instruction,
        "vzeroall",
        lambda machine: (instruction.vzeroupper(machine), machine.file.put(1, bytes(256))),
    )
    return BEHAVIOUR


def _configuration_keeps_tiles(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = amx.ldtilecfg

    def ldtilecfg(machine: Machine, data: bytes) -> None:
        tiles, used = machine.file.values[Component.TILEDATA], machine.file.in_use
        right(machine, data)
        machine.file.values[Component.TILEDATA] = tiles
        machine.file.in_use |= used & mask_of(Component.TILEDATA)

    monkeypatch.setattr(amx, "ldtilecfg", ldtilecfg)
    return BEHAVIOUR


def _start_row_stays(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    monkeypatch.setattr(amx, "_restart", lambda machine: None)
    return BEHAVIOUR


def _rows_of_a_whole_tile(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    """TILELOADD leaves what is outside the configuration."""

    def put(machine: Machine, tile: int, value: bytes) -> None:
        old = machine.file.values[Component.TILEDATA]
        width, rows = amx.shape(machine.file.values[Component.TILECFG], tile)
        new = bytearray(old)
        for row in range(rows):
            at = 1024 * tile + 64 * row
            new[at : at + width] = value[64 * row : 64 * row + width]
        machine.file.write(Component.TILEDATA, bytes(new))
        amx._restart(machine)

    monkeypatch.setattr(amx, "_put", put)
    return BEHAVIOUR


def _pkru_initialised(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    monkeypatch.setattr(restore, "_PKRU", 0)
    return BEHAVIOUR


def _fstp_sets_fdp(monkeypatch: pytest.MonkeyPatch) -> Behaviour:
    right = x87._execute
    monkeypatch.setattr(x87, "_execute", lambda *arguments, operand: right(*arguments, operand=True))
    return BEHAVIOUR


SABOTAGES = {
    "an illegal TILECFG is loaded as it stands": ("xrstor-amx", _loaded_as_it_stands),
    "a TILECFG of zeros is in use": ("sequences-amx", _by_value()),
    "TILEDATA goes by value": ("sequences-amx", _by_value(Component.TILECFG, Component.TILEDATA)),
    "FIP keeps 64 bits": ("sequences-noamx", _changed(fip_bits=64)),
    "FIP is extended from bit 47": ("sequences-noamx", _changed(fip_bits=48)),
    "FDP is extended as FIP is": ("sequences-noamx", _changed(fdp_bits=57)),
    "FCS and FDS are kept": ("sequences-noamx", _changed(selectors=True)),
    "FOP and FDP are set without an exception": ("sequences-x87", _changed(pointers_on_exception=False)),
    "FSTP sets FDP": ("sequences-x87", _fstp_sets_fdp),
    "a refused restore changes nothing": ("xrstor-amx", _changed(partial_restore=False)),
    "a refused restore initialises PKRU": ("xrstor-amx", _pkru_initialised),
    "MXCSR is checked before IA32_XFD": ("xrstor-noamx", _mxcsr_before_xfd),
    "the header is checked before the length": ("xrstor-amx", _header_before_length),
    "absent components are not touched": ("xrstor-amx", _changed(reads_absent=False)),
    "XINUSE goes by value": ("sequences-noamx", _changed(tracks_values=True)),
    "XINUSE tells of all registers outside 64-bit mode": ("sequences-noamx", _changed(upper_in_use=True)),
    "a restore outside 64-bit mode puts all registers in use": ("sequences-noamx", _no_halves),
    "a restore outside 64-bit mode clears all of a bit": ("sequences-noamx", _initial_means_all),
    "FXRSTOR goes by value": ("sequences-noamx", _fxrstor_by_value),
    "LDMXCSR leaves XINUSE": ("sequences-noamx", _ldmxcsr_leaves_sse),
    "FNINIT makes x87 initial": ("sequences-noamx", _fninit_initialises),
    "VZEROALL leaves SSE in use": ("sequences-noamx", _vzeroall_leaves_sse),
    "LDTILECFG keeps the tiles": ("sequences-amx", _configuration_keeps_tiles),
    "start_row stays": ("sequences-amx", _start_row_stays),
    "TILELOADD leaves what is outside the configuration": ("sequences-amx", _rows_of_a_whole_tile),
    "PKRU is saved with its padding": ("sequences-noamx", _changed(pkru_padding=True)),
    "XSAVE leaves out what IA32_XFD holds back": ("sequences-noamx", _changed(writes_disabled=False)),
}


@pytest.mark.parametrize("wrong", SABOTAGES)
def test_a_wrong_model_is_caught(monkeypatch, wrong):
    """By what it says, or, where a processor might choose so, by how often this one then chose otherwise."""
    name, change = SABOTAGES[wrong]
    report = check(name, change(monkeypatch), most=3)
    if report.disagreements >= 3:
        return
    chosen = report.counts["in-use bits chosen otherwise"]
    assert chosen > report.counts["in-use bits"] // 10_000
