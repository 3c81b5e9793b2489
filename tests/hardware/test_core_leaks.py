"""Native functions keep no memory and no references, on their error paths either."""

import contextlib
import gc
import resource
import sys
from array import array
from pathlib import Path

import pytest

from fpstate.errors import FpStateError

PAGE_BYTES = resource.getpagesize()
ROUNDS = 1000
ALLOWED_BYTES = 1 << 20
"""A quarter of what 1000 lost mappings of a page take."""
ALLOWED_COUNT = ROUNDS // 8
"""Python's caches grow by some blocks now and then; one that is lost in each round makes 1000."""


def in_memory() -> int:
    """Bytes that are mapped and bytes that are resident, together."""
    mapped, resident = Path("/proc/self/statm").read_text().split()[:2]
    return (int(mapped) + int(resident)) * PAGE_BYTES


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def growth(deed, rounds: int = ROUNDS) -> tuple[int, int, int]:
    """Return by how much memory, mappings and Python's blocks grow over many rounds: the least of three tries.

    A leak shows each time; what other threads and Python's caches do in the meantime does not.
    """
    for _ in range(200):
        deed()
    tries = [_growth_once(deed, rounds) for _ in range(3)]
    return (
        min(memory for memory, _, _ in tries),
        min(maps for _, maps, _ in tries),
        min(count for *_, count in tries),
    )


def _growth_once(deed, rounds: int) -> tuple[int, int, int]:
    gc.collect()
    before = in_memory(), mappings(), sys.getallocatedblocks()
    for _ in range(rounds):
        deed()
    gc.collect()
    return in_memory() - before[0], mappings() - before[1], sys.getallocatedblocks() - before[2]


def refused(function, *arguments, **names):
    with contextlib.suppress(
        FpStateError, ValueError, TypeError, OSError, OverflowError, MemoryError, BufferError
    ):
        function(*arguments, **names)
        raise AssertionError(f"{function} accepts {arguments}")


def deeds(core):
    mask, image = core.features()["managed_mask"], bytes(576)
    bad = bytes(512) + (1 << 63).to_bytes(8, "little") + bytes(56)
    slab, memory, vcpu, queue = core.Slab(64, 8), core.Memory(4096), core.Vcpu(), core.Queue()
    area = core.Slab(640, 1)
    context = core.Context()
    contexts, turns = core.bench_ring([context]), array("I", [0, 1, 0, 1])
    slots = core.bench_slots(image, 2) if core.features()["xsavec"] else None

    def take_and_give():
        slab.give(slab.take())

    def fill():
        slots = [slab.take() for _ in range(8)]
        refused(slab.take)
        for slot in slots:
            slab.give(slot)

    def ring():
        memory = core.Memory(4096)
        member, members = core.Vcpu(), core.Queue(timing=False)
        member.code_start, member.code_end = memory.address, memory.address + 4096
        member.rip = memory.address
        members.add(member)
        refused(members.add, member)
        members.remove(member)
        members.add(member)

    def attach():
        vcpu.attach(area, 3)
        vcpu.attach(None, 0)

    return {
        "cpuid": lambda: core.cpuid(1),
        "xgetbv": lambda: (core.xgetbv(0), refused(core.xgetbv, 9)),
        "features": lambda: core.features(),
        "numbers": lambda: (core.mxcsr_mask(), core.tsc_hz()),
        "exchange": lambda: core.exchange(image, mask),
        "exchange refused": lambda: refused(core.exchange, bad, mask),
        "exchange too long": lambda: refused(core.exchange, bytes(1 << 16), mask),
        "exchange of nothing": lambda: refused(core.exchange, None, mask),
        "bench_slots": lambda: core.bench_slots(image, 2, image),
        "bench_slots refused": lambda: refused(core.bench_slots, image, 2, bad),
        "bench_walk": lambda: (core.bench_walk(slots, "read", turns, 0, 3), core.bench_size(slots)),
        "bench_walk refused": lambda: refused(core.bench_walk, slots, "xsavec", turns, 1, 3),
        "bench_ring": lambda: core.bench_ring([context]),
        "bench_ring refused": lambda: refused(core.bench_ring, [context, None]),
        "bench_fill": lambda: core.bench_fill(contexts, image),
        "bench_fill refused": lambda: (
            refused(core.bench_fill, contexts, bad),
            refused(core.bench_fill, contexts, bytes(1 << 16)),
        ),
        "bench_switches": lambda: core.bench_switches(contexts, "rotate next", 0, 3),
        "bench_switches refused": lambda: refused(core.bench_switches, contexts, "switch", 9, 3),
        "bench_control": lambda: core.bench_control(2),
        "unspill": lambda: core.unspill(bytearray(64), [(0, 0, 8)] * 3),
        "unspill refused": lambda: refused(core.unspill, bytearray(64), [(0, 0, 8), (0, 60, 8)]),
        "unspill of nothing": lambda: refused(core.unspill, bytearray(64), [(0, 0, 8), 5]),
        "slab": lambda: core.Slab(64, 1),
        "slab refused": lambda: refused(core.Slab, 65, 1),
        "slab too large": lambda: refused(core.Slab, 64, 1 << 55),
        "slab view": lambda: memoryview(slab)[3:5],
        "take and give": take_and_give,
        "take from a full slab": fill,
        "give refused": lambda: refused(slab.give, 5),
        "memory": lambda: core.Memory(8192),
        "memory refused": lambda: (refused(core.Memory, 1), refused(core.Memory, 1 << 50)),
        "write and read": lambda: (memory.write(0, b"abc"), memory.read(0, 3)),
        "write and read refused": lambda: (refused(memory.write, 4095, b"abc"), refused(memory.read, -1, 3)),
        "protect": lambda: (memory.protect(0, 4096, True, False), refused(memory.protect, 1, 1, True, False)),
        "vcpu": lambda: core.Vcpu(),
        "vcpu refused": lambda: refused(core.Vcpu, 1),
        "registers": lambda: (vcpu.registers, vcpu.fault, vcpu.cycles, vcpu.set_register(3, 1 << 63)),
        "registers refused": lambda: (
            refused(vcpu.set_register, 16, 0),
            refused(setattr, vcpu, "pkru", 1 << 40),
        ),
        "attach": attach,
        "attach refused": lambda: (
            refused(vcpu.attach, bytes(1024), 3),
            refused(vcpu.attach, bytearray(5), 3),
        ),
        "queue": lambda: core.Queue(timing=True),
        "queue refused": lambda: refused(core.Queue, 1, 2, 3),
        "ring": ring,
        "add refused": lambda: (
            refused(queue.add, None),
            refused(queue.add, vcpu),
            refused(queue.remove, vcpu),
        ),
        "run": lambda: queue.run(1_000_000, 0),
        "run refused": lambda: refused(queue.run, 0, 0),
        "samples": lambda: (queue.samples(), queue.switches, len(queue)),
    }


NAMES = (
    *("cpuid", "xgetbv", "features", "numbers", "exchange", "exchange refused", "exchange too long"),
    *("exchange of nothing", "unspill"),
    *(
        "bench_slots",
        "bench_slots refused",
        "bench_walk",
        "bench_walk refused",
        "bench_ring",
        "bench_ring refused",
    ),
    *("bench_fill", "bench_fill refused", "bench_switches", "bench_switches refused", "bench_control"),
    *("unspill refused", "unspill of nothing", "slab", "slab refused", "slab too large", "slab view"),
    *("take and give", "take from a full slab", "give refused", "memory", "memory refused", "write and read"),
    *(
        "write and read refused",
        "protect",
        "vcpu",
        "vcpu refused",
        "registers",
        "registers refused",
        "attach",
    ),
    *("attach refused", "queue", "queue refused", "ring", "add refused", "run", "run refused", "samples"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_native_function_leaks_nothing(native, name):
    if name.startswith("bench") and not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    memory, maps, blocks = growth(deeds(native)[name])
    assert memory < ALLOWED_BYTES
    assert maps < ALLOWED_COUNT
    assert blocks < ALLOWED_COUNT


def test_every_name_is_tried(native):
    assert set(NAMES) == set(deeds(native))


def test_a_leak_would_be_seen(native):
    """The negative control: kept slabs, kept memories and kept vCPUs are all noticed."""
    kept = []
    assert growth(lambda: kept.append(native.Slab(64, 64)), 500)[0] > ALLOWED_BYTES
    assert growth(lambda: kept.append(native.Memory(4096)), 500)[1] > 50
    assert growth(lambda: kept.append(native.Vcpu()), 500)[2] > 100


def test_runs_keep_no_references(native):
    memory = native.Memory(4096)
    memory.write(0, b"\xb8\0\0\0\0\xe7\xf5")
    memory.protect(0, 4096, True, True)
    vcpu = native.Vcpu()
    vcpu.code_start, vcpu.code_end = memory.address, memory.address + 4096
    queue = native.Queue()
    before = sys.getrefcount(vcpu)
    for _ in range(500):
        vcpu.rip = memory.address
        queue.add(vcpu)
        assert queue.run(1_000_000, 1_000_000_000) is vcpu
    assert sys.getrefcount(vcpu) == before
