"""The section ``peers``: the library's switches among others, each with what it keeps of the floating-point state."""

from __future__ import annotations

from .baseline import PLAIN, Slots
from .measured import Measured, Settings
from .peers import FULL, Way, compare
from .state import ALL_BUT_X87, EVERYTHING, TYPICAL, classes, image_of, stretches, visits
from .subject import control_walk, cores, make_contexts

CLASSES = (TYPICAL, ALL_BUT_X87, EVERYTHING)


def measure(settings: Settings) -> Measured:
    """Measure what others offer, the bare instructions, and this library in C and from Python."""
    subjects, missing = cores()
    steps = settings.steps
    order = visits(2, steps)
    starts, ways, masks = stretches(order, steps), list[Way](), classes()
    for name in (name for name in CLASSES if name in masks):
        image = image_of(masks[name])
        slots = Slots((image, image), 2)
        ways.append(Way(f"{PLAIN}, {name}", FULL, slots.walk("xsavec", order, starts, steps)))
        for core in subjects:
            contexts = make_contexts((image, image), 2)
            ways.append(
                Way(f"fpstate {core.name}, {name}", FULL, core.walk(contexts, "switch", starts, steps))
            )
            called = core.calls(contexts, steps)
            ways.append(Way(f"fpstate {core.name} from Python, {name}", FULL, called))
    plain = Slots((image_of(masks[EVERYTHING]),), 2)
    ways.append(Way("FXSAVE+FXRSTOR", "x87, SSE", plain.walk("fxsave", order, starts, steps)))
    ways.append(Way("fpstate switch_control", "MXCSR, FCW", control_walk(steps)))
    rows, lacking = compare(ways, settings.repeats)
    return Measured({}, {"rows": rows}, {**missing, **lacking})
