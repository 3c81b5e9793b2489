"""The loops that measurements are made of: they switch what they say, lose nothing, and refuse what leaves them."""

from __future__ import annotations

import itertools
import sys
from array import array

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import LEGACY
from fpstate.errors import ImageError, RestoreFault
from fpstate.image import Image

LINE = 64
TURNS = array("I", [0, 1, 2] * 40)
WAYS = ("switch", "next", "rotate", "rotate next")


@pytest.fixture
def states(core):
    """Three different images of everything that may be used here."""
    if not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    from fpstate.bench.state import everything, image_of

    images = [image_of(everything()) for _ in range(3)]
    for index, image in enumerate(images):
        image.registers["xmm3"] = 1000 + index
        image.registers["mxcsr"] = 0x1F80 | index << 13
    return images


@pytest.fixture
def ring(core, states):
    """Contexts with these states, in the order of their turns."""
    contexts = [core.Context() for _ in states]
    ring = core.bench_ring(contexts)
    for index, image in enumerate(states):
        core.bench_fill(ring, image.to_bytes(), index, len(states))
    return contexts, ring


def held(contexts) -> list[tuple[int, int]]:
    from fpstate.vso.switching import read

    return [(read(context).registers["xmm3"], read(context).registers["mxcsr"]) for context in contexts]


def test_contexts_hold_what_they_are_filled_with(ring):
    assert held(ring[0]) == [(1000 + index, 0x1F80 | index << 13) for index in range(3)]


@pytest.mark.parametrize("way", WAYS)
def test_every_loop_switches_and_leaves_each_context_its_own_state(core, each_core, ring, way):
    contexts, native = ring
    before = held(contexts)
    for start, steps in itertools.product(range(3), (0, 1, 2, 3, 100)):
        assert core.bench_switches(native, way, start, steps) >= 0
    assert held(contexts) == before


def test_a_state_that_was_mixed_up_would_show(core, states, ring):
    contexts, native = ring
    before = held(contexts)
    core.bench_fill(native, states[0].to_bytes(), 1, 3)
    assert held(contexts) != before


@pytest.mark.parametrize("way", ["xsavec", "fxsave", "read"])
def test_walks_are_timed_and_keep_the_threads_control_words(core, states, way):
    slots = core.bench_slots(states[1].to_bytes(), 3, states[2].to_bytes())
    few, many = (min(core.bench_walk(slots, way, TURNS, 0, n) for _ in range(20)) for n in (1, 100))
    assert 0 <= few < many
    one, three, ten = (float(number) for number in (1, 3, 10))
    assert one / ten == float.fromhex("0x1.999999999999ap-4"), (
        "not rounded down, as the state of one slot says"
    )
    assert one / three == float.fromhex("0x1.5555555555555p-2"), "not rounded up, as the other's"


def test_the_lines_of_an_image_are_those_of_its_components(core):
    if not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    from fpstate.bench.state import classes, image_of

    whole = Layout.compacted(Cpu.host(), core.features()["managed_mask"])
    for mask in classes().values():
        lines = set(range(576 // LINE))
        for place in whole.places:
            if place.component > 1 and mask >> place.component & 1:
                lines |= set(range(place.offset // LINE, (place.end - 1) // LINE + 1))
        slots = core.bench_slots(image_of(mask).to_bytes(), 1)
        assert core.bench_size(slots) == (-(-whole.size // LINE) * LINE, len(lines))


def test_what_leaves_the_slots_the_order_or_the_ring_is_refused(core, states, ring):
    slots = core.bench_slots(states[0].to_bytes(), 2)
    for way, order, start, steps in (
        ("xsavec", TURNS, 0, 3),
        ("xsavec", array("I", [0, 1]), 0, 2),
        ("xsavec", array("I", [0, 1]), -1, 1),
        ("xsavec", array("I", [0, 1]), 2, 0),
        ("xsaves", array("I", [0, 1]), 0, 1),
    ):
        with pytest.raises(ValueError):
            core.bench_walk(slots, way, order, start, steps)
    for way, start, steps in (("switch", 3, 1), ("switch", -1, 1), ("switch", 0, -1), ("jump", 0, 1)):
        with pytest.raises(ValueError):
            core.bench_switches(ring[1], way, start, steps)
    with pytest.raises(ValueError):
        core.bench_walk(ring[1], "read", TURNS, 0, 1)
    with pytest.raises(TypeError):
        core.bench_ring([None])
    with pytest.raises(ValueError):
        core.bench_slots(states[0].to_bytes(), 0)


def test_a_ring_keeps_its_contexts_whatever_becomes_of_the_list(core):
    contexts = [core.Context()]
    alone = sys.getrefcount(contexts[0])
    ring = core.bench_ring(contexts)
    member = contexts.pop()
    assert sys.getrefcount(member) == alone + 1  # the name's for the list's, and the ring's
    assert core.bench_switches(ring, "switch", 0, 10) >= 0


def test_images_that_the_processor_refuses_reach_no_loop(core, ring):
    image = Image.initial(Layout.standard(Cpu.host(), LEGACY)).to_bytes()
    bad = image[:512] + (1 << 63).to_bytes(8, "little") + image[520:]
    for refused in (lambda: core.bench_slots(bad, 1), lambda: core.bench_fill(ring[1], bad)):
        with pytest.raises(RestoreFault):
            refused()
    for too_long in (
        lambda: core.bench_slots(bytes(1 << 20), 1),
        lambda: core.bench_fill(ring[1], bytes(1 << 20)),
    ):
        with pytest.raises(ImageError, match="longer"):
            too_long()
