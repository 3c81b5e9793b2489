"""The leak audit: clean on the engine as it is, and not on one that is broken in a single place."""

from __future__ import annotations

import pytest

from fpstate import audit
from fpstate.arch.component import LEGACY
from fpstate.engine.native import NativeEngine
from fpstate.vso import Manager, Pool

CONTEXTS = 16

pytestmark = pytest.mark.usefixtures("each_core")


class SkipsWhatIsAbsent(NativeEngine):
    """Restores what the next context has, and leaves what it lacks in the registers."""

    def restore_mask(self, vso):
        return vso.xfeatures | LEGACY


class ForgetsToScrub(Pool):
    """Takes buffers back as they are."""

    def _scrub_and_free(self, buffer):
        buffer.slab.give(buffer.slot, scrub=False)


class CopiesTooLittle(Manager):
    """Loses the last 64 bytes of what it moves."""

    def _pieces(self, source, target, in_use):
        *rest, (at, to, size) = super()._pieces(source, target, in_use)
        return [*rest, (at, to, size - 64)]


@pytest.fixture
def beyond_legacy(native) -> int:
    """Components that one context can have and the next lack."""
    mask = native.features()["managed_mask"] & ~LEGACY
    if not mask:
        pytest.skip("a component beyond x87 and SSE (XCR0[2] or higher)")
    return mask


def test_the_engine_leaks_nothing(native):
    manager = Manager()
    report = audit(NativeEngine(manager, timeout=10))
    assert report.leaks == []
    assert report.damaged == []
    assert report.clean
    assert report.canaries == 48
    assert report.searched_bytes > 48 * 576
    assert manager.statistics().bytes_held == 0
    assert manager.vsos() == []


@pytest.mark.parametrize("seed", [1, 77, 1 << 20])
@pytest.mark.parametrize("quantum_ns", [50_000, 400_000])
def test_it_leaks_nothing_with_other_patterns_and_other_quanta(native, seed, quantum_ns):
    engine = NativeEngine(Manager(), timeout=10)
    assert audit(engine, contexts=CONTEXTS, seed=seed, quantum_ns=quantum_ns).clean


def test_canaries_are_preempted_while_they_are_watched(native):
    manager = Manager()
    audit(NativeEngine(manager, timeout=10), contexts=CONTEXTS)
    counts = manager.statistics()
    assert counts.saves > 8 * CONTEXTS
    assert counts.growths >= CONTEXTS


def test_registers_that_a_switch_leaves_behind_are_caught(beyond_legacy):
    report = audit(SkipsWhatIsAbsent(Manager(), timeout=10), contexts=CONTEXTS)
    assert not report.clean
    assert report.leaked_bytes > 0
    assert {leak.place.partition(" of ")[2] for leak in report.leaks} == {"a fresh context"}
    assert all(leak.owner.startswith("canary 0x1") for leak in report.leaks)


def test_buffers_that_go_back_unscrubbed_are_caught(native):
    report = audit(NativeEngine(Manager(pool=ForgetsToScrub()), timeout=10), contexts=CONTEXTS)
    assert report.leaked_bytes > 0
    assert {leak.place for leak in report.leaks} == {"free pool memory"}


def test_a_copy_that_is_too_short_is_caught(native):
    report = audit(NativeEngine(CopiesTooLittle(), timeout=10), contexts=CONTEXTS)
    assert not report.clean
    assert len(report.damaged) >= CONTEXTS
    assert all("mismatches, the first in " in problem for problem in report.damaged if "canary:" in problem)


def test_a_leak_of_a_single_register_is_enough(native, monkeypatch):
    """The search itself, on an engine that runs: one word of a living canary put where it must not be."""
    from fpstate.engine import leak as module

    planted = []
    search = module._Audit._search

    def plant_then_search(run):
        free = next((view for view in run.engine.manager.pool.free_memory()), None)
        if not planted and free is not None:
            word = next(word for word, owner in run.words.owners.items() if owner.startswith("canary"))
            free[64:72] = word.to_bytes(8, "little")
            planted.append(word)
            search(run)
            free[64:72] = bytes(8)
        else:
            search(run)

    monkeypatch.setattr(module._Audit, "_search", plant_then_search)
    report = audit(NativeEngine(Manager(), timeout=10), contexts=CONTEXTS)
    (found,) = report.leaks
    assert (found.word, found.place, found.offset) == (planted[0], "free pool memory", 64)


def test_contexts_that_end_badly_are_reported(native):
    """A fault is damage; running out of time is not (test_audit_of_each_component.py)."""

    class Faults(NativeEngine):
        def vcpu(self, program, **options):
            made = super().vcpu(program, **options)
            if program.name == "canary":
                made.core.rip = made.core.code_end - 64  # zeros: add [rax], al
            return made

    report = audit(Faults(Manager(), timeout=10), contexts=4)
    assert report.found
    assert report.unjudged == []
    assert sum(problem.startswith("canary ") for problem in report.damaged) == 4


def test_contexts_held_to_the_legacy_components_leak_nothing_either(beyond_legacy):
    manager = Manager(policy=LEGACY)
    assert audit(NativeEngine(manager, timeout=10), contexts=CONTEXTS).clean
    assert manager.statistics().denials == 0
