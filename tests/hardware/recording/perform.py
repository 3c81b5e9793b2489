"""Sequences on this processor: each three times, and what most of the times came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from recorded import Case, Patch, build

from .answers import Outcome, answers, area_of, comes_in_use_by_itself
from .child import SELECTORS, Child, Step
from .host import UNUSED, Host
from .inputs import ALL, TEMPLATES, Inputs
from .sequences import AREAS, READS, RESTORES, ROW, SAVES, STORES, Operation, Sequences

NewChild = Callable[[], Child]
TIMES = 3
_BATCH = 100
_WITH_BYTES = 150
"""So many sequences of a file have every byte that saves changed."""


def majority(outcomes: Sequence[Any]) -> tuple[Any, bool]:
    """Return the outcome of most times, and whether there is one."""
    for outcome in outcomes:
        if 2 * sum(outcome == other for other in outcomes) > len(outcomes):
            return outcome, True
    return outcomes[0], False


def record_sequences(
    host: Host,
    inputs: Inputs,
    count: int,
    permission: int,
    new_child: NewChild,
    *,
    short: bool,
    x87: bool = False,
) -> tuple[dict[str, Any], Iterator[Case]]:
    """Return the header of a file of sequences, and its cases as they come."""
    makes = Sequences(host, inputs, short=short, x87=x87)
    templates = [inputs.template() for _ in range(TEMPLATES)]
    header: dict[str, Any] = {
        "kind": "sequences",
        "permission": permission,
        "area": makes.area,
        "templates": templates,
    }
    if x87:
        with new_child() as child:
            header["fip"] = {name: child.stubs[name] for name in ("fldt", "fstp")}
        header["selectors"] = SELECTORS
    return header, _cases(host, inputs, makes, templates, count, permission, new_child, x87)


def _cases(
    host: Host,
    inputs: Inputs,
    makes: Sequences,
    templates: list[list[Patch]],
    count: int,
    permission: int,
    new_child: NewChild,
    x87: bool,
) -> Iterator[Case]:
    bases = [bytes(build(patches, inputs.pool, makes.area)) for patches in templates]
    made = 0
    batch = 1 if permission == UNUSED else _BATCH
    runners = _Runners(host, inputs.pool, new_child, alone=permission == UNUSED)
    with runners:
        while made < count:
            cases: list[Case] = [
                {"t": [inputs.source.randrange(len(bases)) for _ in range(AREAS)], "o": makes.one()}
                for _ in range(min(batch, count - made))
            ]
            starts = [[bases[t] for t in case["t"]] for case in cases]
            times = [runners.run([case["o"] for case in cases], starts) for _ in range(TIMES)]
            for case, start, outcomes in zip(cases, starts, zip(*times, strict=True), strict=True):
                outcome, agreed = majority(outcomes)
                case["r"] = answers(host, case["o"], start, outcome, inputs.pool, whole=made < _WITH_BYTES)
                if x87:
                    case["at"] = runners.pool_at
                if not agreed or comes_in_use_by_itself(case["o"], outcome, permission):
                    case["varies"] = 1
                made += 1
                yield case


class _Runners(AbstractContextManager["_Runners"]):
    """One child for all sequences, or one for each."""

    def __init__(self, host: Host, pool: bytes, new_child: NewChild, *, alone: bool) -> None:
        self.host, self.pool, self.new_child, self.alone = host, pool, new_child, alone
        self.pool_at = 0
        self._runner: Runner | None = None

    def run(self, sequences: list[list[Operation]], starts: list[list[bytes]]) -> list[Outcome]:
        if self._runner is None or self.alone:
            self.__exit__()
            self._runner = Runner(self.new_child(), self.host, self.pool)
            self.pool_at = self._runner.pool_at
        return self._runner.run(sequences, starts)

    def __exit__(self, *_: object) -> None:
        if self._runner is not None:
            self._runner.child.close()
            self._runner = None


class Runner:
    """Lets a child perform sequences."""

    def __init__(self, child: Child, host: Host, pool: bytes) -> None:
        self.child = child
        self.host = host
        self.pool_at = child.place(pool)
        self.initial_at = child.place(bytes(24) + (0x1F80).to_bytes(4, "little") + bytes(host.size))
        child.keep()

    def run(self, sequences: list[list[Operation]], starts: list[list[bytes]]) -> list[Outcome]:
        """Perform sequences, each from initial registers and the areas that it starts with."""
        child = self.child
        child.release()
        steps: list[Step] = []
        told: list[tuple[list[int], list[int]]] = []
        size = len(starts[0][0])
        for operations, areas in zip(sequences, starts, strict=True):
            places = [child.place(area) for area in areas]
            steps.append(child.step("xrstor64", self.initial_at, ALL))
            indices, copies = [], []
            for operation in operations:
                indices.append(len(steps))
                steps.append(self.step(operation, places))
                if operation[0] in SAVES or operation[0] in STORES:
                    copies.append(child.reserve(size))
                    steps.append(child.step("copy", copies[-1], places[area_of(operation)], size))
            told.append((indices, copies))
        records = child.run(steps)
        return [
            Outcome(tuple(records[n] for n in indices), tuple(child.read(at, size) for at in copies))
            for indices, copies in told
        ]

    def step(self, operation: Operation, places: list[int]) -> Step:
        """Return the step that performs an operation on areas at these addresses."""
        child, (name, *operands) = self.child, operation
        if name in SAVES or name in RESTORES:
            area, mask, skew = operands
            return child.step(name, places[area] + skew, mask)
        if name == "edit":
            data = bytes.fromhex(operands[2])
            return child.step("copy", places[operands[0]] + operands[1], child.place(data), len(data))
        if name == "copy":
            area, offset, start, length = operands
            return child.step("copy", places[area] + offset, self.pool_at + start, length)
        if name == "tilestored":
            return child.step(f"tilestored.{operands[0]}", places[operands[1]] + operands[2], ROW)
        if name == "sttilecfg":
            return child.step(name, places[operands[0]] + operands[1])
        if name == "ldtilecfg":
            return child.step(name, child.place(bytes.fromhex(operands[0])))
        if name == "tileloadd":
            return child.step(f"{name}.{operands[0]}", self.pool_at + operands[1], ROW)
        if name in ("vpxor", "tilezero"):
            return child.step(f"{name}.{operands[0]}")
        if name == "fldt":
            return child.step(name, self.pool_at + operands[0])
        if name in ("fldcw", "ldmxcsr"):
            return child.step(name, child.place(operands[0].to_bytes(4, "little")))
        if name == "wrpkru":
            return child.step(name, 0, operands[0])
        if name == "xgetbv":
            return child.step(name, 0, 0, operands[0])
        if name in READS:
            return child.step(name, child.place(bytes(8)))
        if operands:  # a move into a register
            return child.step(f"{name}.{operands[0]}", self.pool_at + operands[1])
        return child.step(name)
