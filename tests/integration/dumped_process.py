"""Holds states in every way there is, and aborts: which of them are in its core?

A pattern is written byte by byte where it is to be, and wiped where it was only on the way, so that no other part of
the process ever has all of it.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

SIZE, XMM_AT, MXCSR_AT, HEADER_AT, IMAGE = 256, 160, 24, 512, 576
CANARY_SEED = 4711


def byte(index: int, salt: int) -> int:
    """One byte of the pattern of a ``salt``: no two patterns have a row of bytes in common."""
    mixed = (index * 0x85EBCA6B + (salt + 1) * 0x9E3779B1) & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 15) * 0xC2B2AE35 & 0xFFFFFFFF
    return (mixed ^ mixed >> 13) >> 8 & 255


def fill(view: bytearray | memoryview, at: int, salt: int) -> None:
    """Put the pattern of a ``salt`` there."""
    for index in range(SIZE):
        view[at + index] = byte(index, salt)


def pattern(salt: int) -> bytes:
    view = bytearray(SIZE)
    fill(view, 0, salt)
    return bytes(view)


def context(salt: int, *, parked: bool) -> object:
    from fpstate import Context

    image = bytearray(IMAGE)
    image[0:2], image[MXCSR_AT : MXCSR_AT + 2], image[HEADER_AT] = b"\x7f\x03", b"\x80\x1f", 2
    fill(image, XMM_AT, salt)
    found = Context()
    found.load(image)
    for index in range(IMAGE):
        image[index] = 0
    if parked:
        found.park()
    return found


def slab(salt: int) -> object:
    from fpstate._core import Slab

    found = Slab(1024, 4)
    fill(memoryview(found), 0, salt)
    return found


def guest_memory(salt: int) -> object:
    from fpstate._core import Memory

    found = Memory(65536)
    piece = bytearray(1)
    for index in range(SIZE):
        piece[0] = byte(index, salt)
        found.write(4096 + index, piece)
    return found


def arena(salt: int) -> object:
    """Memory of a KVM guest, without a guest."""
    from types import SimpleNamespace

    from fpstate.engine.kvm.arena import Arena

    machine = SimpleNamespace(map=lambda *_: None, allow_mmu_pages=lambda _: None)
    found = Arena(machine)
    piece = found.take(4096)
    fill(memoryview(piece.chunk.memory), piece.offset, salt)
    return found


def guest(salt: int) -> object:
    """A canary, preempted now and then: its registers were in signal frames and in buffers."""
    from fpstate import Manager, NativeEngine, Scheduler
    from fpstate.program import BUILTIN

    engine = NativeEngine(Manager(), timeout=60)
    vcpu = engine.vcpu(BUILTIN["canary"].load(), seed=CANARY_SEED, argument=50_000)
    report = Scheduler(engine, quantum_ns=20_000).run([vcpu])
    assert report.preemptions
    assert vcpu.exit is not None
    return engine


def nothing_is_kept(salt: int) -> object:
    """The control of the other kind: an ordinary object, which is in every core."""
    found = bytearray(SIZE)
    fill(found, 0, salt)
    return found


KINDS: dict[str, Callable[[int], object]] = {
    "context": lambda salt: context(salt, parked=False),
    "parked context": lambda salt: context(salt, parked=True),
    "slab": slab,
    "guest memory": guest_memory,
    "KVM guest's memory": arena,
    "guest": guest,
    "Python object": nothing_is_kept,
}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path("/proc/self/coredump_filter").write_text(
        "0x33"
    )  # the default: private memory, and shared without a file
    kept = [KINDS[kind](list(KINDS).index(kind)) for kind in sys.argv[1:]]
    os.abort()
