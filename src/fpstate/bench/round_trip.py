"""The section ``vcpu``: a voluntary round trip into a guest and back, beside the bare pair of instructions.

Two guests that call out at once take turns: each round trip saves the one and restores the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fpstate.engine.native import NativeEngine, NativeQueue
from fpstate.image import Image
from fpstate.program import Program
from fpstate.vso import Manager

from .baseline import PLAIN, Slots
from .measured import Measured, Settings
from .quantity import Ratio, worst
from .sample import Samples, figures, in_turn
from .state import ALL_BUT_X87, classes, image_of, stretches, visits
from .subject import Core, cores

YIELD_FOR_EVER = bytes.fromhex("b80100000065ff142500000000ebf1")
"""1: mov $1, %eax; call *%gs:0; jmp 1b"""
_QUANTUM_NS = 1_000_000_000
_BUDGET_NS = 10_000_000_000


def measure(settings: Settings) -> Measured:
    """Measure round trips on both cores, for every in-use class."""
    subjects, missing = cores()
    rows, ratios = [], {core.name: dict[str, Ratio]() for core in subjects}
    for name, mask in classes().items():
        taken = _class(mask, subjects, settings)
        rows.append({"class": name, "mask": hex(mask), "ns": figures(taken)})
        for core in subjects:
            ratios[core.name][name] = Ratio(taken[core.name], taken[PLAIN], name)
    chosen = {}
    if "portable" in ratios:
        chosen["vcpu.portable"] = worst(ratios["portable"])
    if "fast" in ratios:
        chosen["vcpu.fast"] = ratios["fast"][ALL_BUT_X87]
    return Measured(chosen, {"classes": rows}, missing)


def _class(mask: int, subjects: list[Core], settings: Settings) -> dict[str, Samples]:
    image, steps = image_of(mask), settings.steps
    order = visits(2, steps)
    ways = {PLAIN: Slots((image, image), 2).walk("xsavec", order, stretches(order, steps), steps)}
    for core in subjects:
        ways[core.name] = _trips(guests(image if mask else None), core, steps)
    return in_turn(ways, settings.repeats)


def guests(image: Image | None) -> NativeQueue:
    """Return a queue of two guests with this state; None leaves them initial."""
    manager = Manager(shrink_after=0)
    engine = NativeEngine(manager)
    queue = NativeQueue(engine, timing=False)
    program = Program.from_bytes(YIELD_FOR_EVER, format="flat", name="yield for ever")
    for _ in range(2):
        vcpu = engine.vcpu(program)
        if image is not None:
            manager.load(vcpu.vso, image)
            vcpu.attach()
        queue.add(vcpu)
    return queue


def _trips(queue: NativeQueue, core: Core, count: int) -> Callable[[], float]:
    def sample() -> float:
        core.use()
        start = time.thread_time_ns()
        queue.run(_QUANTUM_NS, _BUDGET_NS, count)
        return (time.thread_time_ns() - start) / count

    return sample
