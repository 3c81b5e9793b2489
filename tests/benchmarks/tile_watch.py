"""What a look for tiles costs: switches between guests that are watched, and between the same unwatched, in turn.

The KVM engine looks after each slice of a guest that could load tiles, on a KVM that runs tile instructions and does
not keep tiles; see docs/kvm-engine.md. Exit code 3 where this machine's KVM is another.

    python tests/benchmarks/tile_watch.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from fpstate import Manager
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.errors import UnsupportedHere
from fpstate.program import BUILTIN

ROUNDS, SLICES, QUANTUM = 9, 200, 100_000


def switch_ns(engine: KvmEngine, *, watched: bool) -> float:
    """Return the median time from one guest's exit to the next one's entry, of two canaries by turns."""
    guests = [engine.vcpu(BUILTIN["canary"].load(), seed=seed, argument=10**9) for seed in range(2)]
    queue = engine.queue()
    for guest in guests:
        if not watched:
            guest.watch = None
        queue.add(guest)
    queue.run_slices(QUANTUM, SLICES)
    queue.clear()
    return statistics.median(queue.report().switch_ns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        engine = KvmEngine(Manager(), vcpus=1)
    except UnsupportedHere as error:
        print(f"tile_watch: {error}", file=sys.stderr)
        return 3
    if engine.keeps_residents:
        print("tile_watch: this KVM enforces XCR0, or keeps tiles: nobody is watched", file=sys.stderr)
        return 3
    pairs = [(switch_ns(engine, watched=False), switch_ns(engine, watched=True)) for _ in range(ROUNDS)]
    engine.close()
    without, with_look = (round(statistics.median(side)) for side in zip(*pairs, strict=True))
    ratio = round(statistics.median(watched / bare for bare, watched in pairs), 2)
    found = {"unwatched_ns": without, "watched_ns": with_look, "ratio": ratio, "rounds": ROUNDS}
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"a switch of an unwatched guest {without} ns, of a watched one {with_look} ns, ratio {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
