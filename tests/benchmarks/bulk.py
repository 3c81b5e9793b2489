"""Many images at once: what a view, all vector registers, and compacting cost for each image.

100,000 images in the standard layout of a Zen 4 (XCR0 0xE7, 2432 bytes), of four classes in random order; one
thread; every way in turn, many times; the best of each. ``struct`` and NumPy do the same where they can, and NumPy
only where it is installed. Moving is memory work: it needs no processor with AVX-512.

    python tests/benchmarks/bulk.py [--json] [--images N] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import struct
import sys
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from fpstate import Cpu, Layout
from fpstate.source.bulk import Bulk
from fpstate.source.gather import compact, compact_size, converted, vectors
from fpstate.testing import random_image

try:
    import numpy
except ImportError:
    numpy = None

XCR0 = 0xE7
CLASSES = (0x03, 0x07, 0xA3, 0xE7)
TARGETS = {"view": 100.0, "vectors": 200.0, "compact": 250.0}
"""Nanoseconds an image, at most."""
PIECES = struct.Struct("<160x" + "16s" * 16 + "160x" + "16s" * 16 + "64x" + "32s" * 16 + "1024s")
ORDER = [*(piece for index in range(16) for piece in (index, 16 + index, 32 + index)), 48]
"""How the pieces of the ZMM registers follow each other."""


def memory(size: int) -> memoryview:
    """Return memory whose pages are all there."""
    area = mmap.mmap(-1, size)
    area.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(area)
    for at in range(0, size, 4096):
        view[at] = 1
    return view


def images(count: int) -> Bulk:
    """Return ``count`` images: 64 different ones of each class, in random order."""
    layout = Layout.standard(Cpu.catalog("zen4"), XCR0)
    kinds = [random_image(layout, seed, present=mask).to_bytes() for mask in CLASSES for seed in range(64)]
    view, source = memory(count * layout.size), random.Random(1)
    for index in range(count):
        view[index * layout.size : (index + 1) * layout.size] = source.choice(kinds)
    return Bulk(view, layout)


def struct_vectors(bulk: Bulk, out: memoryview) -> None:
    """Put the ZMM registers together by ``struct``; it takes every component as present."""
    unpack, pick, stride = PIECES.unpack_from, itemgetter(*ORDER), bulk.stride
    for index in range(len(bulk)):
        out[2048 * index : 2048 * index + 2048] = b"".join(pick(unpack(bulk.view, index * stride)))


def numpy_vectors(bulk: Bulk, out: memoryview) -> Callable[[], None]:
    """Return what puts the ZMM registers together by NumPy; it takes every component as present."""
    fields = bulk.numpy()
    array = numpy.frombuffer(out, "<u8").reshape(len(bulk), 32, 8)

    def fill() -> None:
        array[:, :16, 0:2], array[:, :16, 2:4] = fields["xmm"], fields["ymmh"]
        array[:, :16, 4:8], array[:, 16:] = fields["zmmh"], fields["zmm_16_31"]

    return fill


def numpy_compact(bulk: Bulk) -> Callable[[], None]:
    """Return what groups by class and compacts by NumPy, into arrays that are there already."""
    data = numpy.frombuffer(bulk.view, "u1").reshape(len(bulk), bulk.stride)
    present = numpy.array(bulk.column("xstate_bv"))
    layouts = {mask: Layout.compacted(Cpu.catalog("zen4"), mask) for mask in CLASSES}
    rooms = {mask: numpy.zeros((int((present == mask).sum()), layouts[mask].size), "u1") for mask in CLASSES}

    def fill() -> None:
        for mask, layout in layouts.items():
            chosen, room = numpy.flatnonzero(present == mask), rooms[mask]
            room[:, :576] = data[chosen, :576]
            for place in layout.places:
                if place.component > 1:
                    start = bulk.layout.offset(place.component)
                    room[:, place.offset : place.end] = data[chosen, start : start + place.size]

    return fill


def ways(bulk: Bulk) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    count, cpu = len(bulk), Cpu.catalog("zen4")
    out, copy = memory(count * 2048), memory(count * bulk.stride)
    memory_of_struct = memory(count * 2048)
    packed = memory(compact_size(bulk, cpu))
    groups = compact(bulk, cpu, packed)
    biggest = max(groups, key=lambda group: len(group.images)).images
    found: dict[str, Callable[[], object]] = {
        "memcpy": lambda: copy.__setitem__(slice(None), bulk.view),
        "view": lambda: Bulk(bulk.view, bulk.layout),
        "view, column of mxcsr": lambda: bulk.column("mxcsr"),
        "vectors": lambda: vectors(bulk, out),
        "vectors, through the caches": lambda: vectors(bulk, out, stream=False),
        "vectors, past the caches": lambda: vectors(bulk, out, stream=True),
        "compact": lambda: compact(bulk, cpu, packed),
        "compact, through the caches": lambda: compact(bulk, cpu, packed, stream=False),
        "compact, past the caches": lambda: compact(bulk, cpu, packed, stream=True),
        f"standard again ({len(biggest)} of a class)": lambda: converted(biggest, bulk.layout, copy),
        "struct vectors": lambda: struct_vectors(bulk, memory_of_struct),
    }
    if numpy is not None:
        found["numpy view"] = bulk.numpy
        found["numpy vectors"] = numpy_vectors(bulk, memory(count * 2048))
        found["numpy compact"] = numpy_compact(bulk)
    return found


def measure(count: int, repeats: int) -> dict[str, Any]:
    """Run everything in turn, many times."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bulk = images(count)
    chosen = ways(bulk)
    samples: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(repeats):
        for name, way in chosen.items():
            if name == "struct vectors" and len(samples[name]) >= 3:
                continue
            start = time.perf_counter_ns()
            way()
            elapsed = time.perf_counter_ns() - start
            done = int(name.split("(")[1].split()[0]) if "(" in name else count
            samples[name].append(elapsed / done)
    found = {
        name: {"min": round(min(each), 2), "median": round(statistics.median(each), 2)}
        for name, each in samples.items()
    }
    best = {name: each["min"] for name, each in found.items()}
    ratios = {
        "vectors / memcpy": best["vectors"] / best["memcpy"],
        "compact / memcpy": best["compact"] / best["memcpy"],
        "struct / ours, vectors": best["struct vectors"] / best["vectors"],
    }
    if numpy is not None:
        ratios["numpy / ours, vectors"] = best["numpy vectors"] / best["vectors"]
        ratios["numpy / ours, compact"] = best["numpy compact"] / best["compact"]
    return {
        "schema": "fpstate-bench/1",
        "images": count,
        "bytes": bulk.stride,
        "classes": [hex(mask) for mask in CLASSES],
        "repeats": repeats,
        "ns_per_image": found,
        "targets": TARGETS,
        "met": {name: best[name] <= target for name, target in TARGETS.items()},
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


def main() -> int:
    """Print a table, or JSON; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    found = measure(args.images, args.repeats)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(
            f"{found['images']} images of {found['bytes']} bytes, {found['repeats']} times, in turn; ns an image"
        )
        for name, each in found["ns_per_image"].items():
            target = f"   at most {TARGETS[name]:g}" if name in TARGETS else ""
            print(f"{name:<40}{each['min']:>10} / {each['median']:<10}{target}")
        for name, ratio in found["ratios"].items():
            print(f"{name:<40}{ratio:>10}")
    return 0 if all(found["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
