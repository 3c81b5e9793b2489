"""The leak audit of the model engine: canaries in every component, hosts and guests mixed, and the search.

What is looked through is what ``fpstate.engine.leak`` looks through for real processors, and every register of
the modelled processor as a fresh context finds it, those that are held back included.
"""

from __future__ import annotations

import itertools
from typing import Final

from fpstate.arch.component import LEGACY, Component, component_name, components_in, mask_of
from fpstate.engine.leak import POINTERS_LOST
from fpstate.engine.model.behaviour import Behaviour, Pointers
from fpstate.engine.model.context import ModelVcpu
from fpstate.engine.model.engine import STEP_NS, ModelEngine
from fpstate.engine.model.pattern import pattern
from fpstate.engine.model.scripts import SCRIPTS
from fpstate.image import initial_value
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.audit import AuditReport, Canaries
from fpstate.vso.permission import Kind
from fpstate.vso.vcpu import ExitKind
from fpstate.vso.vso import Vso

CONTEXTS: Final = 24
ROUNDS: Final = 3
_CANARY_SEEDS: Final = 1 << 32
_OTHERS: Final = ("sse", "idle", "amx-denied", "guest-shadow-stacks", "guest-xfd", "signals")
_QUANTUM_NS: Final = 3 * STEP_NS
_PKRU: Final = mask_of(Component.PKRU)
_TURNS: Final = 9
"""How often a canary looks at its registers: in three quanta a round it must not come to an end."""


def audit(engine: ModelEngine, *, contexts: int = CONTEXTS, seed: int = 0) -> AuditReport:
    """Run canaries among other contexts and look for each canary everywhere else.

    The engine's manager must have no VSOs. Canaries are hosts and guests in turn, of everything that they may have
    and of the legacy components alone. After each round all that lives is searched, parked, and searched again;
    fresh contexts, host and guest, look at every register; at the end the pool is searched once more.
    """
    return _Audit(engine, contexts, seed).run()


class _Audit:
    def __init__(self, engine: ModelEngine, contexts: int, seed: int) -> None:
        self.engine = engine
        self.queue = engine.queue()
        self.report = AuditReport(canaries=contexts)
        self.owners: dict[Vso, str] = {}
        self.canaries: list[ModelVcpu] = []
        self.others: list[tuple[str, ModelVcpu]] = []
        usable = [name for name in _OTHERS if not SCRIPTS[name].missing(engine.managed)]
        kinds = itertools.cycle((("canary", None), ("guest", None), ("canary", LEGACY), ("guest", LEGACY)))
        for number, (name, permitted), other in zip(
            range(contexts), kinds, itertools.cycle(usable), strict=False
        ):
            self._add_canary(name, _CANARY_SEEDS + seed + number, permitted)
            self._add_other(other)
        cpu = engine.manager.config.cpu
        self.words = Canaries(
            {
                self.owners[vcpu.vso]: pattern(cpu, vcpu.setting.features, vcpu.setting.seed)
                for vcpu in self.canaries
            }
        )
        for vcpu in self.canaries:
            self.report.components |= vcpu.setting.features
        if (engine.kernel.behaviour or Behaviour.of(cpu)).pointers is not Pointers.KEPT:
            self.report.unsearched["x87 pointers"] = POINTERS_LOST
        for component in components_in(engine.managed & ~self.report.components):
            self.report.unsearched[component_name(component)] = "no script fills it"

    def run(self) -> AuditReport:
        """Run all of it."""
        for _ in range(ROUNDS):
            self.queue.run_slices(_QUANTUM_NS, 3 * len(self.queue))
            self._search()
            self._park()
            self._search()
            self._probe()
        while len(self.queue):
            self.queue.run_slices(_QUANTUM_NS, len(self.queue))
        self._check()
        self._search()
        return self.report

    def _add_canary(self, name: str, seed: int, permitted: int | None) -> None:
        vcpu = self.engine.vcpu(SCRIPTS[name], seed=seed, argument=_TURNS, permitted=permitted)
        self.owners[vcpu.vso] = f"canary {seed:#x}"
        self.canaries.append(vcpu)
        self.queue.add(vcpu)

    def _add_other(self, name: str) -> None:
        vcpu = self.engine.vcpu(SCRIPTS[name], seed=1, argument=SCRIPTS[name].default_argument)
        self.others.append((name, vcpu))
        self.queue.add(vcpu)

    def _search(self) -> None:
        self.report += self.words.search_manager(self.engine.manager, self.owners)

    def _park(self) -> None:
        for vcpu in (*self.canaries, *(vcpu for _, vcpu in self.others)):
            if vcpu.exit is None:
                self.engine.manager.park(vcpu.vso)

    def _probe(self) -> None:
        """Start fresh contexts among the others; all registers that they find must be initial."""
        probes = [self.engine.vcpu(SCRIPTS["probe"], argument=1, kind=kind) for kind in Kind]
        self._line_up(probes)
        while any(probe.exit is None for probe in probes) and len(self.queue):
            self.queue.run_slices(_QUANTUM_NS, len(self.queue))
        for probe in probes:
            who = f"a fresh {probe.setting.kind.value}"
            if not probe.seen:
                self.report.judge(who, probe.exit)
                continue
            initial = {name: self._expected(probe, name) for name in probe.seen}
            self.report += self.words.search_fresh(who, probe.seen, initial)

    def _line_up(self, probes: list[ModelVcpu]) -> None:
        """Let each probe follow a canary with everything; after that those follow one another."""
        living = [vcpu for vcpu in (*self.canaries, *(vcpu for _, vcpu in self.others)) if vcpu.exit is None]
        living.sort(key=lambda vcpu: -vcpu.setting.features.bit_count() if vcpu in self.canaries else 0)
        self.queue.clear()
        pairs = itertools.zip_longest(living[: len(probes)], probes)
        for vcpu in (*(each for pair in pairs for each in pair if each), *living[len(probes) :]):
            self.queue.add(vcpu)

    def _check(self) -> None:
        named = [(self.owners[vcpu.vso], vcpu) for vcpu in self.canaries]
        for who, vcpu in (*named, *self.others):
            if vcpu.exit is None or vcpu.exit.kind is not ExitKind.FINISHED or vcpu.block is None:
                self.report.judge(who, vcpu.exit)
            elif problem := SCRIPTS[vcpu.name].check(vcpu.block.result, vcpu.setting.seed):
                self.report.damaged.append(f"{who}: {problem}")

    def _expected(self, probe: ModelVcpu, name: str) -> int:
        """A fresh host has a new program's PKRU, where the kernel enables that: Zen 2 enumerates it for nothing."""
        if name == "pkru" and probe.setting.kind is Kind.HOST and self.engine.managed & _PKRU:
            return INIT_PKRU
        return initial_value(name)
