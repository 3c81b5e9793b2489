"""An engine that leaks one byte of a component, each in turn, is caught by the audit, by the register's name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from one_byte import CANARY, FRESH, PLACES, SCATTERED, Place, absent, one_byte_engine

from fpstate import audit
from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import component_name, components_in, mask_names
from fpstate.command import run as run_command
from fpstate.command.main import main
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.engine.model.engine import ModelEngine, ModelQueue
from fpstate.engine.model.leak import audit as audit_of_model
from fpstate.engine.native import NativeEngine, NativeQueue
from fpstate.vso.audit import AuditReport
from fpstate.vso.manager import Manager
from fpstate.vso.pool import Pool

HERE = Path(__file__).parent
CONTEXTS = 4
ATTEMPTS = 8
"""Audits of a broken engine until it hands a byte on: where a guest is stopped decides whether it has one to leak."""
EACH = [f"{name}, {to}" for name in PLACES for to in (FRESH, CANARY)]
CPUS = ("granite-rapids", "diamond-rapids-model", "skylake-sp", "zen4")
POINTER_REGISTERS = ("fop", "fip", "fdp")


@lru_cache
def audited(core: str) -> Mapping[str, Any]:
    """Every leak in one process: what its audits found."""
    done = subprocess.run(
        [sys.executable, HERE / "one_byte_audit.py", core],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout)


def assert_caught(name: str, place: Place, found: Mapping[str, Any]) -> None:
    """By the next context's registers: a fresh one must have none of it, a canary has its own."""
    assert found["handed"] > 0, "nothing was leaked: the test has nothing to show"
    assert found["unjudged"] == []
    if place.register in POINTER_REGISTERS and not found["pointers"]:
        pytest.skip("a processor that keeps x87's pointers without a pending exception")
    if name.endswith(FRESH):
        assert any(place.register in where.partition(" of ")[0] for where in found["leaks"]), found
        assert 0 < found["leaked"] <= 8 * found["handed"]
    else:
        named = [re.sub(r"in [xyz]mm", "in mm", what) for what in found["damaged"]]
        assert any(f"the first in {place.register}" in what for what in named), found


@pytest.mark.parametrize("name", EACH)
def test_one_byte_that_a_native_engine_leaks_is_caught(native, each_core, name):
    found = audited(each_core)[name]
    if "absent" in found:
        pytest.skip(found["absent"])
    assert_caught(name, PLACES[name.rpartition(",")[0]], found)


@pytest.mark.parametrize("name", SCATTERED)
def test_any_byte_of_tiles_that_a_native_engine_leaks_is_caught(native, each_core, name):
    """A fresh context is handed the byte only where it is not zero: each probe must follow such a canary."""
    found = audited(each_core)[f"{name}, {FRESH}"]
    if "absent" in found:
        pytest.skip(found["absent"])
    assert_caught(f"{name}, {FRESH}", SCATTERED[name], found)


@pytest.mark.parametrize("name", EACH)
def test_one_byte_that_a_kvm_engine_leaks_is_caught(core, name):
    if lacking := missing_for_kvm():
        pytest.skip(lacking)
    name, to = name.rsplit(", ")
    place = PLACES[name]
    for _ in range(ATTEMPTS):
        engine = one_byte_engine(KvmEngine, place, to)(Manager(), timeout=60, vcpus=1)
        try:
            if lacking := absent(place, engine):
                pytest.skip(lacking)
            report = audit(engine, contexts=CONTEXTS)
        finally:
            engine.close()
        if engine.handed:
            break
    assert_caught(f"{name}, {to}", place, summary(report, engine.handed))


def summary(report: AuditReport, handed: int) -> dict[str, Any]:
    return {
        "handed": handed,
        "leaks": sorted({leak.place for leak in report.leaks}),
        "leaked": report.leaked_bytes,
        "damaged": report.damaged,
        "unjudged": report.unjudged,
        "pointers": "x87 pointers" not in report.unsearched,
    }


# A processor in software: with PKRU, and with what Linux keeps for kernels and guests


class OneByteModelQueue(ModelQueue):
    """Lets a fresh context that runs next find the first byte in which the last one's registers differ."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.left: bytes | None = None
        self.handed = 0

    def _enter(self, vcpu: Any) -> None:
        super()._enter(vcpu)
        component, file = self.engine.leaks, self.core.processor.file
        fresh = vcpu.name == "probe" and vcpu.slices == 1
        if self.left is None or not fresh:
            return
        now = bytes(file.values[component])
        places = (at for at in range(self.engine.start, len(now)) if self.left[at] != now[at])
        at = next(places, None)
        if at is not None:
            file.put(component, now[:at] + self.left[at : at + 1] + now[at + 1 :])
            self.handed += 1

    def _steps(self, vcpu: Any, steps: int) -> Any:
        ended = super()._steps(vcpu, steps)
        holds = vcpu.name in ("canary", "guest") and vcpu.setting.features >> self.engine.leaks & 1
        self.left = bytes(self.core.processor.file.values[self.engine.leaks]) if holds else None
        return ended


class OneByteModel(ModelEngine):
    """Leaks a byte of a component, from ``start`` of it on."""

    leaks = 0
    start = 0

    def queue(self) -> OneByteModelQueue:
        self.made = OneByteModelQueue(self)
        return self.made


def modelled() -> list[tuple[str, int, int]]:
    """Each component once, on the first processor that has it, and PKRU on all; x87 also from its pointers on."""
    found, seen = [(CPUS[0], Component.X87, 6)], 0
    for name in CPUS:
        config = Manager(Cpu.catalog(name)).config
        managed = config.kernel_max.features | config.independent_features
        each = components_in(managed & (~seen | mask_of(Component.PKRU)))
        found += [(name, component, 0) for component in each]
        seen |= managed
    return found


@pytest.mark.parametrize(
    ("cpu", "component", "start"),
    modelled(),
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_byte_that_a_modelled_kernel_leaks_is_caught(core, cpu, component, start):
    """Of each component of processors that this one is not, PKRU and x87's pointers (from byte 6) among them."""
    engine = OneByteModel(Manager(Cpu.catalog(cpu)))
    engine.leaks, engine.start = component, start
    report = audit_of_model(engine, contexts=8)
    assert engine.made.handed > 0
    assert report.components >> component & 1
    assert report.leaks, component_name(component)
    assert {leak.place.partition(" of ")[2] for leak in report.leaks} <= {"a fresh host", "a fresh guest"}


def test_what_is_leaked_in_software_is_what_no_processor_here_has_too():
    """PKRU on processors of both vendors; MPX, APX, LBR and what Linux keeps for kernels and guests."""
    leaked = modelled()
    assert {name for name, component, _ in leaked if component == Component.PKRU} == set(CPUS)
    names = {component_name(component) for _, component, _ in leaked}
    assert names >= {"BNDREGS", "BNDCSR", "APX", "LBR", "CET_U", "CET_S", "PASID", "TILECFG", "TILEDATA"}


# Memory that must be empty


class LeavesOneByte(Pool):
    """Leaves the last byte that is not zero of each buffer that comes back."""

    left = 0

    def _scrub_and_free(self, buffer):
        data = bytes(buffer.view).rstrip(b"\0")
        super()._scrub_and_free(buffer)
        if len(data) > 576:
            buffer.view[len(data) - 1] = data[-1]
            self.left += 1


def test_one_byte_in_free_memory_is_caught(native, each_core):
    pool = LeavesOneByte()
    report = audit(NativeEngine(Manager(pool=pool), timeout=60), contexts=CONTEXTS)
    assert pool.left > 0
    assert {leak.place for leak in report.leaks} >= {"free pool memory"}
    assert {leak.size for leak in report.leaks if leak.place == "free pool memory"} == {1}


class LeavesAState(NativeQueue):
    """Puts what the thread's registers hold into the spill area, and leaves it there."""

    def run_slices(self, quantum_ns, slices):
        ended = super().run_slices(quantum_ns, slices)
        from fpstate import _core

        _core.save_state(None, 0)
        return ended


def test_what_is_left_in_the_spill_area_is_caught(native, each_core):
    class Engine(NativeEngine):
        def queue(self):
            return LeavesAState(self)

    if not native.features()["xgetbv1"]:
        pytest.skip("XGETBV with ECX=1 (CPUID.(0DH,1):EAX[2])")
    report = audit(Engine(Manager(), timeout=60), contexts=CONTEXTS)
    assert {leak.place for leak in report.leaks} == {"the spill area"}


def test_one_byte_in_an_image_that_goes_between_kvm_and_buffers_is_caught(core, monkeypatch):
    if lacking := missing_for_kvm():
        pytest.skip(lacking)
    from fpstate.engine.kvm.carrier import CarrierPool

    def keep_one_byte(pool, carrier):
        byte = carrier.image[160]
        carrier.image[:] = bytes(len(carrier.image))
        carrier.image[160] = byte
        with pool._changed:
            pool._free.append(carrier)

    monkeypatch.setattr(CarrierPool, "give_back", keep_one_byte)
    engine = KvmEngine(Manager(), timeout=60, vcpus=1)
    try:
        report = audit(engine, contexts=CONTEXTS)
    finally:
        engine.close()
    assert {(leak.place, leak.offset, leak.size) for leak in report.leaks} == {("an exchange image", 160, 1)}


# Not leaked, not damaged: not judged


def test_canaries_that_run_out_of_time_are_not_judged(native, each_core):
    report = audit(NativeEngine(Manager(), timeout=1e-9), contexts=CONTEXTS)
    assert (report.leaks, report.damaged, report.found, report.clean) == ([], [], False, False)
    assert all("used up its processor time" in who for who in report.unjudged)
    assert sum(who.startswith("canary ") for who in report.unjudged) == CONTEXTS


@pytest.fixture
def command(native, capsys):
    """command(*arguments) -> exit code and report of ``fpstate run`` in this process."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["run", "--vcpus", "3", *arguments, "spin"])
        return code, capsys.readouterr().out

    return run


def test_the_audit_has_time_whatever_the_limit_of_the_programs_asked_for(command):
    code, out = command("--timeout", "1ns", "--argument", "100000000", "--json")
    report = json.loads(out)
    assert (code, report["ends"]) == (1, {"expired": 3})
    assert (report["audit"]["not_judged"], report["audit"]["damaged"]) == ([], [])


def test_a_run_whose_audit_could_not_judge_says_so_and_exits_3(command, monkeypatch):
    """The clock is made a limit that no canary can keep."""
    monkeypatch.setattr(run_command, "AUDIT_NS", 1)
    audited = run_command._audit

    def impatient(choice, args):
        args.timeout = 1
        return audited(choice, args)

    monkeypatch.setattr(run_command, "_audit", impatient)
    code, out = command()
    assert code == 3
    assert " 0 contexts damaged " in out
    assert re.search(r"^  not judged    \d+ contexts of the audit", out, re.MULTILINE)
    assert re.search(r"^  ! not judged: canary 0x1\w+: used up its processor time$", out, re.MULTILINE)
    code, out = command("--json")
    report = json.loads(out)
    assert (code, report["leaked_bytes"], report["audit"]["damaged"]) == (3, 0, [])
    assert report["audit"]["not_judged"]


def test_a_run_says_which_components_were_searched_for(command):
    code, out = command("--json")
    told = json.loads(out)["audit"]
    assert code == 0
    assert told["components"] == [*mask_names(audit(NativeEngine(Manager()), contexts=CONTEXTS).components)]
    code, out = command()
    assert f"  searched for  {'|'.join(told['components'])}\n" in out
    for name, reason in told["not_searched"].items():
        assert f"  not searched  {name}: {reason}\n" in out


def test_what_is_searched_for_is_what_programs_are_offered(native):
    engine = NativeEngine(Manager(), timeout=60)
    report = audit(engine, contexts=CONTEXTS)
    offered = engine.offered(engine.manager.permissions.user_mask(engine.kind))
    assert report.components == offered | 3
    left = engine.manager.config.user_max.features & ~report.components
    assert set(report.unsearched) - {"x87 pointers"} == {component_name(each) for each in components_in(left)}
    if left & mask_of(Component.TILEDATA):
        assert report.unsearched["TILEDATA"] == "not requested"
