"""From one VSO to another in this thread: save, grow where a buffer is too small, load."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import PermissionRequestError, UnsupportedHere

if TYPE_CHECKING:
    from fpstate.vso.manager import Manager
    from fpstate.vso.vso import Vso


def switch_vsos(manager: Manager, outgoing: Vso, incoming: Vso) -> None:
    """Do what ``Manager.switch`` says."""
    from fpstate import _core

    spilled_layout = _spilled_layout(manager.config.cpu)
    try:
        in_use, spilled = _core.save_state(_view(outgoing), outgoing.xfeatures)
        if spilled:
            _store_spilled(manager, outgoing, in_use, spilled_layout)
    except BaseException:
        _wipe_spill()  # an interrupt may come between the save and what follows
        raise
    _core.load_state(_view(incoming))
    manager.count_switches(1, 1)


def _store_spilled(manager: Manager, vso: Vso, in_use: int, layout: Layout) -> None:
    """Move a state from the spill area to a larger buffer; an interrupted move leaves nothing there."""
    from fpstate import _core

    try:
        manager.store(vso, in_use, layout, _copy_from_spill)
    except PermissionRequestError:
        manager.wipe(vso)
        _core.load_state(None)
        raise
    except BaseException:
        _core.load_spilled()
        raise
    _wipe_spill()


def _wipe_spill() -> None:
    from fpstate import _core

    _core.unspill(bytearray(), ())


def _view(vso: Vso) -> memoryview | None:
    return vso.buffer.view if vso.buffer else None


def _copy_from_spill(view: memoryview, moves: Sequence[tuple[int, int, int]]) -> None:
    from fpstate import _core

    _core.unspill(view, moves, False)


@cache
def _spilled_layout(cpu: Cpu) -> Layout:
    """Return where a spilled state has its components; raises UnsupportedHere where ``cpu`` has them elsewhere."""
    from fpstate import _core

    found = _core.features()

    def layout(of: Cpu) -> Layout:
        make = Layout.compacted if found["xsavec"] else Layout.standard
        return make(of, found["managed_mask"] & of.user_mask)

    here = layout(Cpu.host())
    if not cpu.has("XSAVEC") == found["xsavec"] or layout(cpu) != here:
        raise UnsupportedHere(f"the layout of {cpu.name}, which the manager has")
    return here
