"""The audit of native engines that each leak one byte; prints what was found as JSON.

In a process of its own: Linux takes permission for tiles never back.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from one_byte import CANARY, FRESH, PLACES, SCATTERED, Place, absent, one_byte_engine

from fpstate import audit
from fpstate.arch import Component, mask_of
from fpstate.engine.native import NativeEngine
from fpstate.vso.manager import Manager

CONTEXTS = 4
MORE_CONTEXTS = 8
"""So that each probe can follow another canary."""


def manager() -> Manager:
    made = Manager()
    if made.config.user_max.features & mask_of(Component.TILEDATA):
        made.request(Component.TILEDATA)
    return made


def main(core: str) -> None:
    from fpstate import _core

    _core.core_choice()
    _core.core_use(core)
    found = {
        f"{name}, {to}": audited(place, to, CONTEXTS)
        for name, place in PLACES.items()
        for to in (FRESH, CANARY)
    }
    found |= {f"{name}, {FRESH}": audited(place, FRESH, MORE_CONTEXTS) for name, place in SCATTERED.items()}
    print(json.dumps(found))


def audited(place: Place, to: str, contexts: int) -> dict[str, Any]:
    engine = one_byte_engine(NativeEngine, place, to)(manager(), timeout=60)
    if lacking := absent(place, engine):
        return {"absent": lacking}
    report = audit(engine, contexts=contexts)
    return {
        "handed": engine.handed,
        "leaks": sorted({leak.place for leak in report.leaks}),
        "leaked": report.leaked_bytes,
        "damaged": report.damaged,
        "unjudged": report.unjudged,
        "pointers": "x87 pointers" not in report.unsearched,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
