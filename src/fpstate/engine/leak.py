"""The leak audit, run: canaries mixed with others on a real engine, then the search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from fpstate.arch.component import LEGACY, component_name, components_in
from fpstate.engine.guest import Guest, GuestEngine, GuestQueue
from fpstate.program.block import KNOWN_FEATURES, TILEDATA
from fpstate.program.builtin import BUILTIN
from fpstate.program.expected.canary import canary_pattern, has_whole_tiles, pointers_compared
from fpstate.program.expected.probe import GENERAL, arguments, parse_probe
from fpstate.program.load import Program
from fpstate.vso.audit import AuditReport, Canaries
from fpstate.vso.vcpu import ExitKind
from fpstate.vso.vso import Vso

CONTEXTS = 48
ROUNDS = 3
_MIXED_WITH = ("spin", "x87_pi", "sse_nbody")
_CANARY_SEEDS = 1 << 32
"""Canaries are seeded from here on: the other programs draw their data from the same generator."""
_SEED_STEP = 4
"""Between the first canaries of two audits: bit 1 of a seed chooses its tiles, and the first has whole ones."""
POINTERS_LOST = "the processor loses them while no exception is pending"
_NOT_REQUESTED = "not requested"
_NOT_FILLED = "no program fills it"


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
        self.turns = 0
        self.others: list[Guest] = []
        self.argument = BUILTIN["canary"].default_argument
        self.offered = engine.offered(engine.manager.permissions.user_mask(engine.kind))
        masks = itertools.cycle((self.offered, LEGACY))
        for number, mask, other in zip(range(contexts), masks, itertools.cycle(_MIXED_WITH), strict=False):
            self._add_canary(_CANARY_SEEDS + _SEED_STEP * seed + number, mask)
            self._add_other(other)
        patterns = {
            self.owners[vcpu.vso]: canary_pattern(number, mask)
            for vcpu, (number, mask) in self.canaries.items()
        }
        self.words = Canaries(patterns)
        self.report.components = (self.offered | LEGACY) & KNOWN_FEATURES
        self.report.unsearched = self._unsearched()

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
        for place, data in self.engine.scratch():
            self.report += self.words.search_empty(place, data)

    def _park(self) -> None:
        for vcpu in self._living():
            self.engine.manager.park(vcpu.vso)
            vcpu.attach()

    def _line_up(self, leaders: Sequence[Guest], probes: Sequence[Guest]) -> None:
        """Let each probe follow a leader, each round others; after that those follow one another."""
        rest = [vcpu for vcpu in self._living() if vcpu not in leaders]
        first = self.turns % max(1, len(leaders))
        self.queue.clear()
        pairs = itertools.zip_longest((*leaders[first:], *leaders[:first]), probes)
        for vcpu in (*(each for pair in pairs for each in pair if each), *rest):
            self.queue.add(vcpu)
        self.turns += 1

    def _leads(self, vcpu: Guest) -> bool:
        """Whether it is a canary with everything that programs are offered, and with tiles in every byte."""
        seed, mask = self.canaries.get(vcpu, (0, 0))
        return (
            vcpu in self.canaries
            and mask == self.offered
            and (has_whole_tiles(seed) or not self.offered & TILEDATA)
        )

    def _living(self) -> Iterator[Guest]:
        return (vcpu for vcpu in (*self.canaries, *self.others) if vcpu.exit is None)

    def _probe(self) -> None:
        """Start fresh contexts, each right behind a canary; what they find in their registers must be initial."""
        builtin = BUILTIN["probe"]
        probes = [self.engine.vcpu(builtin.load(), argument=choice) for choice in arguments(self.offered)]
        waiting = probes
        while waiting:
            leaders = [vcpu for vcpu in self._living() if self._leads(vcpu)]
            batch = waiting[: max(1, len(leaders))]
            waiting = waiting[len(batch) :]
            self._line_up(leaders, batch)
            while any(probe.exit is None for probe in batch) and len(self.queue):
                self._slices(len(self.queue))
        for choice, probe in enumerate(probes):
            if probe.block is None:
                self.report.judge("a probe", probe.exit)
                continue
            features, result = probe.block.features, probe.block.result
            initial = parse_probe(builtin.expected(0, choice, features), features)
            registers = parse_probe(result, features)
            fresh = {name: value for name, value in registers.items() if name not in GENERAL}
            found = self.words.search_fresh("a fresh context", fresh, initial)
            self.report += found
            problem = builtin.check(result, 0, choice, features)
            if problem and not found.leaks:
                self.report.damaged.append(f"a fresh context: {problem}")

    def _check(self) -> None:
        for vcpu, (seed, mask) in self.canaries.items():
            if vcpu.block is None:
                self.report.judge(self.owners[vcpu.vso], vcpu.exit)
                continue
            if problem := BUILTIN["canary"].check(vcpu.block.result, seed, self.argument, mask):
                self.report.damaged.append(f"{self.owners[vcpu.vso]}: {problem}")
            if not pointers_compared(vcpu.block.result):
                self.report.unsearched["x87 pointers"] = POINTERS_LOST
        for vcpu in self.others:
            if vcpu.exit is None or vcpu.exit.kind is not ExitKind.FINISHED:
                self.report.judge(vcpu.name, vcpu.exit)

    def _unsearched(self) -> dict[str, str]:
        """Say why no canary fills what else the processor's contexts can hold."""
        left = self.engine.manager.config.user_max.features & ~self.report.components
        none_here = f"contexts of engine {self.engine.name} have none here"
        possible = self.engine.offered(left)
        return {
            component_name(component): (
                none_here
                if not possible >> component & 1
                else _NOT_FILLED
                if self.offered >> component & 1
                else _NOT_REQUESTED
            )
            for component in components_in(left)
        }
