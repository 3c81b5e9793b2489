"""The audit of native engines that each leak one byte; prints what was found as JSON.

In a process of its own: Linux takes permission for tiles never back.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from one_byte import CANARY, FRESH, PLACES, absent, one_byte_engine

from fpstate import audit
from fpstate.arch import Component, mask_of
from fpstate.engine.native import NativeEngine
from fpstate.vso.manager import Manager

CONTEXTS = 4


def manager() -> Manager:
    made = Manager()
    if made.config.user_max.features & mask_of(Component.TILEDATA):
        made.request(Component.TILEDATA)
    return made


def main(core: str) -> None:
    from fpstate import _core

    _core.core_choice()
    _core.core_use(core)
    found: dict[str, dict[str, Any]] = {}
    for name, place in PLACES.items():
        for to in (FRESH, CANARY):
            engine = one_byte_engine(NativeEngine, place, to)(manager(), timeout=60)
            if lacking := absent(place, engine):
                found[f"{name}, {to}"] = {"absent": lacking}
                continue
            report = audit(engine, contexts=CONTEXTS)
            found[f"{name}, {to}"] = {
                "handed": engine.handed,
                "leaks": sorted({leak.place for leak in report.leaks}),
                "leaked": report.leaked_bytes,
                "damaged": report.damaged,
                "unjudged": report.unjudged,
                "pointers": "x87 pointers" not in report.unsearched,
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
