"""Empty buffers, wherever they lie: CPython 3.13 gives empty objects an odd address, others give none at all."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fpstate.errors import ImageError

CORE = Path(__file__).parents[2] / "src/fpstate/_core"
ALL = (1 << 63) - 1


def at(address: int) -> memoryview:
    """An empty writable buffer that says it lies there."""
    return memoryview((ctypes.c_char * 0).from_address(address)).cast("B")


INSIDE = bytearray(8 * 576)
EMPTIES: dict[str, Callable[[], object]] = {
    "bytearray": bytearray,
    "array": lambda: array("I"),
    "view": lambda: memoryview(bytearray()),
    "end of a view": lambda: memoryview(bytearray(1))[1:],
    "inside of the other buffer": lambda: memoryview(INSIDE)[577:577],
    "no address": lambda: at(0),
    "odd address": lambda: at(3),
}


@pytest.fixture(params=EMPTIES)
def empty(request: pytest.FixtureRequest) -> object:
    return EMPTIES[request.param]()


def is_zeros_image(core: ModuleType, empty: object) -> bool:
    """But for XSTATE_BV: a processor may say that what is initial is in use."""
    found, zeros = core.exchange(empty, 3), core.exchange(bytes(576), 3)
    return (found[:512], found[520:]) == (zeros[:512], zeros[520:])


def gather(
    core: ModuleType, source: object, destination: object, indices: object, classes=(), count=0
) -> int:
    moves = [(0, 0, 64)]
    rows = [(key, 0, 64, 0, bytes(64), moves) for key in classes]
    return core.gather(source, 576, count, 0, ALL, 3, False, 576, rows, destination, False, indices)


RIGHT: dict[str, Callable[[ModuleType, object], bool]] = {
    "exchange": is_zeros_image,
    "unspill nothing": lambda core, empty: core.unspill(empty, ()) is None,
    "unspill pieces of no bytes": lambda core, empty: core.unspill(empty, [(0, 0, 0), (64, 0, 0)]) is None,
    "classify": lambda core, empty: core.classify(empty, 576, 0, 0, ALL, 3, False) == ([], -1),
    "gather from nothing": lambda core, empty: gather(core, empty, bytearray(64), None) == -1,
    "gather to nothing": lambda core, empty: gather(core, INSIDE, empty, None) == -1,
    "gather and list nothing": lambda core, empty: gather(core, INSIDE, bytearray(64), empty) == -1,
    "gather nothing at all": lambda core, empty: gather(core, empty, empty, empty, classes=(1, 2)) == -1,
    "write to memory": lambda core, empty: core.Memory(4096).write(4096, empty) is None,
    "a slot": lambda core, empty: core.bench_size(core.bench_slots(empty, 1, empty))[1] >= 9,
    "a ring": lambda core, empty: core.bench_fill(core.bench_ring([core.Context()]), empty) is None,
}


@pytest.mark.parametrize("name", RIGHT)
def test_an_empty_buffer_is_nothing_to_read_or_write(core, empty, name):
    if name == "a slot" and not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    assert RIGHT[name](core, empty)


REFUSED: dict[str, tuple[Callable[[ModuleType, object], object], type[Exception], str]] = {
    "load_state": (lambda core, empty: core.load_state(empty), ValueError, "at least 576 bytes"),
    "save_state": (lambda core, empty: core.save_state(empty, 3), ValueError, "at least 576 bytes"),
    "attach": (lambda core, empty: core.Vcpu().attach(empty, 3), ValueError, "at least 576 bytes"),
    "check_image": (lambda core, empty: core.check_image(empty), ImageError, "at least 576 bytes"),
    "load": (lambda core, empty: core.Context().load(empty), ImageError, "at least 576 bytes"),
    "unspill": (lambda core, empty: core.unspill(empty, [(0, 0, 1)]), ValueError, "leaves"),
    "classify": (lambda core, empty: core.classify(empty, 576, 1, 0, 3, 3, False), ValueError, "beyond"),
    "gather from": (
        lambda core, empty: gather(core, empty, bytearray(64), None, count=1),
        ValueError,
        "beyond",
    ),
    "gather and list": (
        lambda core, empty: gather(core, INSIDE, bytearray(64), empty, count=1),
        ValueError,
        "four aligned bytes",
    ),
    "walk": (
        lambda core, empty: core.bench_walk(core.bench_slots(bytes(576), 1), "read", empty, 0, 0),
        ValueError,
        "the steps the order",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_bytes_refuses_an_empty_buffer_in_our_words(core, empty, name):
    if name == "walk" and not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    deed, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        deed(core, empty)


def test_a_record_of_no_bytes_is_refused(core):
    with pytest.raises(ValueError, match="records reach beyond"):
        core.gather(INSIDE, 576, 0, 0, ALL, 3, False, 576, [(1, 0, 64, 0, b"", [])], bytearray(64), True)


def test_buffers_that_hold_bytes_are_looked_at_as_before(core):
    """The negative control: only what is empty may overlap or lie askew."""
    for source, destination in ((INSIDE, memoryview(INSIDE)[577:641]), (INSIDE, INSIDE)):
        with pytest.raises(ValueError, match="overlap"):
            gather(core, source, destination, None)
    askew = memoryview(bytearray(9))[1:5]
    with pytest.raises(ValueError, match="four aligned bytes"):
        gather(core, INSIDE, bytearray(64), askew, count=1)


def test_no_other_file_of_the_core_takes_buffers():
    """One that begins to belongs into the tables above; a slab gives one, a vCPU's is checked as a state's, and
    checked_load.c has those of state_methods.c and context_type.c."""
    assert {path.name for path in CORE.glob("*.c") if "Py_buffer" in path.read_text()} == {
        *("bench_contexts.c", "bench_methods.c", "bulk_methods.c", "context_type.c", "memory_type.c"),
        *("checked_load.c", "errors.c", "module.c", "slab_type.c", "state_methods.c", "vcpu_type.c"),
    }
