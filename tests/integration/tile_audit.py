"""The leak audit with tiles, on a native engine that is whole or broken in one place; prints what it found as JSON.

In a process of its own, as a test runs it: Linux takes permission for tiles never back.
"""

from __future__ import annotations

import json
import sys

from fpstate import audit
from fpstate.arch import Component, mask_of
from fpstate.engine.native import NativeEngine
from fpstate.vso.manager import Manager
from fpstate.vso.pool import Pool

TILECFG, TILEDATA = mask_of(Component.TILECFG), mask_of(Component.TILEDATA)
ROW, ROWS = 64, 128


class LeavesConfiguration(NativeEngine):
    """Leaves TILECFG as the guest before had it, where the next one has none."""

    left = TILECFG

    def restore_mask(self, vso):
        return self.managed & ~(self.left & ~vso.xfeatures)


class LeavesTiles(LeavesConfiguration):
    """Leaves TILEDATA, and makes TILECFG initial."""

    left = TILEDATA


class LeavesBoth(LeavesConfiguration):
    """Leaves all of AMX."""

    left = TILECFG | TILEDATA


class CutsRows(Manager):
    """Moves the first half of each row of the tiles."""

    def _pieces(self, source, target, in_use):
        if not in_use & TILEDATA:
            return super()._pieces(source, target, in_use)
        at, to = source.place(Component.TILEDATA).offset, target.place(Component.TILEDATA).offset
        rows = [(at + ROW * row, to + ROW * row, ROW // 2) for row in range(ROWS)]
        return [*super()._pieces(source, target, in_use & ~TILEDATA), *rows]


class LosesTheLastRow(Manager):
    """Loses the last 64 bytes of the tiles: the last row of the last one."""

    def _pieces(self, source, target, in_use):
        *rest, (at, to, size) = super()._pieces(source, target, in_use)
        return [*rest, (at, to, size - ROW if in_use & TILEDATA else size)]


class ForgetsToScrub(Pool):
    """Takes buffers back as they are."""

    def _scrub_and_free(self, buffer):
        buffer.slab.give(buffer.slot, scrub=False)


TWINS = {
    "whole": (NativeEngine, Manager),
    "configuration": (LeavesConfiguration, Manager),
    "tiles": (LeavesTiles, Manager),
    "both": (LeavesBoth, Manager),
    "rows": (NativeEngine, CutsRows),
    "last row": (NativeEngine, LosesTheLastRow),
    "unscrubbed": (NativeEngine, lambda: Manager(pool=ForgetsToScrub())),
}


def main(twin: str, core: str) -> None:
    from fpstate import _core

    _core.core_choice()
    _core.core_use(core)
    engine_of, manager_of = TWINS[twin]
    manager = manager_of()
    manager.request(Component.TILEDATA)
    report = audit(engine_of(manager, timeout=30), contexts=16)
    found = {
        "offered": manager.permissions.user_mask(engine_of.kind),
        "canaries": report.canaries,
        "searched": report.searched_bytes,
        "places": sorted({leak.place for leak in report.leaks}),
        "damaged": report.damaged,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
