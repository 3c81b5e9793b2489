"""The section ``memory``: what contexts hold of the machine's memory, metadata included, beside static blobs.

Each way fills its own process, which tells how much more is resident afterwards (``Rss`` of smaps_rollup).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.errors import UnsupportedHere

from .baseline import Slots
from .measured import Measured, Settings
from .quantity import Ratio
from .room import OWN_BYTES, contexts_that_fit, shortage
from .sample import in_turn
from .state import everything, image_of
from .subject import Ring, make_contexts

MIX: Final = (
    (6, mask_of(Component.SSE)),
    (2, LEGACY | mask_of(Component.AVX)),
    (1, None),
    (1, 0),
)
"""Of ten contexts: six with SSE alone, two with AVX, one with everything (None), one idle."""
KERNEL_BYTES: Final = 2472
KVM_BYTES: Final = 4096
LARGEST_BYTES: Final = 11008
_ELSEWHERE: Final = (
    ("in the Linux kernel, struct fpu of a Zen 4", KERNEL_BYTES),
    ("struct kvm_xsave", KVM_BYTES),
    ("Sapphire Rapids, everything", LARGEST_BYTES),
)
_MOST_REPEATS: Final = 3
"""Bytes are counted, not timed: they are the same each time."""
PARKED: Final = "contexts, parked"
BLOBS: Final = "static blobs"
WAYS: Final = (BLOBS, "contexts", PARKED)


def measure(settings: Settings) -> Measured:
    """Measure a mix of contexts, as they run and parked, beside as many static blobs: as many as there is room for.

    Raises UnsupportedHere where there is none, and where a process that fills them ends.
    """
    stride = Slots((image_of(everything()),), 1).stride + OWN_BYTES
    count = contexts_that_fit(settings.million, stride)
    if not count:
        raise UnsupportedHere(shortage(1, stride))
    missing = (
        {} if count == settings.million else {"some of the contexts": shortage(settings.million, stride)}
    )
    taken = in_turn({way: _child(way, count) for way in WAYS}, min(settings.repeats, _MOST_REPEATS))
    rows = [_row(way, taken[way].min, count) for way in WAYS]
    rows += [{"what": what, "each": each, "total": each * count} for what, each in _ELSEWHERE]
    details: dict[str, Any] = {"contexts": count, "rows": rows}
    ratio = Ratio(taken[PARKED], taken[BLOBS], f"{count:,}", "bytes")
    return Measured({"memory.million": ratio}, details, missing)


def _row(way: str, total: float, count: int) -> dict[str, Any]:
    return {"what": way, "each": total / count, "total": total}


def _child(way: str, count: int) -> Callable[[], float]:
    def sample() -> float:
        command = [sys.executable, "-m", __name__, way, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise UnsupportedHere(f"{count:,} {way} end with code {done.returncode}{last and ': ' + last}")
        return float(done.stdout)

    return sample


def resident() -> int:
    """Return this process's resident bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup has no line Rss")


def fill(way: str, count: int) -> tuple[int, object]:
    """Make ``count`` states and return the resident bytes that they take, and the states."""
    images = [image_of(everything() if mask is None else mask) for share, mask in MIX for _ in range(share)]
    before = resident()
    made: Slots | Ring = Slots((images[-2],), count) if way == BLOBS else make_contexts(images, count)
    if way == PARKED:
        assert isinstance(made, Ring)
        for context in made.contexts:
            context.park()
    return resident() - before, made


if __name__ == "__main__":
    print(fill(sys.argv[1], int(sys.argv[2]))[0])
