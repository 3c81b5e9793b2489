"""The leak audit, run: canaries mixed with others on a real engine, then the search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from fpstate.arch.component import LEGACY
from fpstate.engine.guest import Guest, GuestEngine, GuestQueue
from fpstate.program.builtin import BUILTIN
from fpstate.program.expected.canary import canary_pattern
from fpstate.program.expected.probe import arguments, parse_probe
from fpstate.program.load import Program
from fpstate.vso.audit import AuditReport, Canaries
from fpstate.vso.vcpu import ExitKind
from fpstate.vso.vso import Vso

CONTEXTS = 48
ROUNDS = 3
_MIXED_WITH = ("spin", "x87_pi", "sse_nbody")
_CANARY_SEEDS = 1 << 32
"""Canaries are seeded from here on: the other programs draw their data from the same generator."""


def audit(
    engine: GuestEngine[Any, Program], *, contexts: int = CONTEXTS, seed: int = 0, quantum_ns: int = 100_000
) -> AuditReport:
    """Run canaries among other contexts and look for each canary everywhere else; takes about half a second.

    The engine's manager must have no VSOs. Half of the canaries may use the legacy components alone, and the others
    use less, so that contexts follow each other that lack what the one before had. After each round all that lives
    is searched, parked, and searched again; probes started in between read their fresh registers; at the end
    everything is freed and the pool searched once more.
    """
    return _Audit(engine, contexts, seed, quantum_ns).run()


class _Audit:
    def __init__(self, engine: GuestEngine[Any, Program], contexts: int, seed: int, quantum_ns: int) -> None:
        self.engine = engine
        self.quantum_ns = quantum_ns
        self.queue: GuestQueue[Any] = engine.queue()
        self.report = AuditReport(canaries=contexts)
        self.owners: dict[Vso, str] = {}
        self.canaries: dict[Guest, tuple[int, int]] = {}
        self.others: list[Guest] = []
        self.argument = BUILTIN["canary"].default_argument
        self.offered = engine.offered(engine.manager.permissions.user_mask(engine.kind))
        masks = itertools.cycle((self.offered, LEGACY))
        for number, mask, other in zip(range(contexts), masks, itertools.cycle(_MIXED_WITH), strict=False):
            self._add_canary(_CANARY_SEEDS + seed + number, mask)
            self._add_other(other)
        patterns = {
            self.owners[vcpu.vso]: canary_pattern(number, mask)
            for vcpu, (number, mask) in self.canaries.items()
        }
        self.words = Canaries(
            {owner: pattern.values() for owner, pattern in patterns.items()},
            {owner: pattern["pkru"] for owner, pattern in patterns.items() if "pkru" in pattern},
        )

    def run(self) -> AuditReport:
        """Run all of it."""
        every = len(self.canaries) + len(self.others)
        for _ in range(ROUNDS):
            self._slices(4 * every)
            self._search()
            self._park()
            self._search()
            self._probe()
        while len(self.queue):
            self._slices(every)
        self._check()
        self._search()
        return self.report

    def _add_canary(self, seed: int, mask: int) -> None:
        program = BUILTIN["canary"].load()
        vcpu = self.engine.vcpu(program, seed=seed, argument=self.argument, permitted=mask)
        self.owners[vcpu.vso] = f"canary {seed:#x}"
        self.canaries[vcpu] = (seed, mask)
        self.queue.add(vcpu)

    def _add_other(self, name: str) -> None:
        builtin = BUILTIN[name]
        vcpu = self.engine.vcpu(builtin.load(), seed=1, argument=builtin.default_argument, permitted=LEGACY)
        self.others.append(vcpu)
        self.queue.add(vcpu)

    def _slices(self, count: int) -> None:
        self.queue.run_slices(self.quantum_ns, count)

    def _search(self) -> None:
        self.report += self.words.search_manager(self.engine.manager, self.owners)

    def _park(self) -> None:
        for vcpu in self._living():
            self.engine.manager.park(vcpu.vso)
            vcpu.attach()

    def _living(self) -> Iterator[Guest]:
        return (vcpu for vcpu in (*self.canaries, *self.others) if vcpu.exit is None)

    def _probe(self) -> None:
        """Start fresh contexts among the others; what they find in their registers must be initial."""
        builtin = BUILTIN["probe"]
        probes = [self.engine.vcpu(builtin.load(), argument=choice) for choice in arguments(self.offered)]
        for probe in probes:
            self.queue.add(probe)
        while any(probe.exit is None for probe in probes) and len(self.queue):
            self._slices(len(self.queue))
        for choice, probe in enumerate(probes):
            if probe.block is None:
                self.report.damaged.append(f"a probe: {probe.exit}")
                continue
            features, result = probe.block.features, probe.block.result
            found = self.words.search_values("a fresh context", parse_probe(result, features))
            self.report += found
            problem = builtin.check(result, 0, choice, features)
            if problem and not found.leaks:
                self.report.damaged.append(f"a fresh context: {problem}")

    def _check(self) -> None:
        for vcpu, (seed, mask) in self.canaries.items():
            problem = (
                BUILTIN["canary"].check(vcpu.block.result, seed, self.argument, mask)
                if vcpu.block
                else str(vcpu.exit)
            )
            if problem:
                self.report.damaged.append(f"{self.owners[vcpu.vso]}: {problem}")
        for vcpu in self.others:
            if vcpu.exit is None or vcpu.exit.kind is not ExitKind.FINISHED:
                self.report.damaged.append(f"{vcpu.name}: {vcpu.exit}")
