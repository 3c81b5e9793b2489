"""Programs that need tiles, where the processor has them and guests of a KVM do not: how they end, unentered.

Who says nothing and uses them all the same is found later: ``tile_watch``.
"""

from __future__ import annotations

from fpstate.arch.component import AMX, Component, mask_text
from fpstate.errors import PermissionDenied
from fpstate.program.load import Program
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import Exit, ExitKind


def needs_tiles(program: Program) -> bool:
    """Whether a program says that it cannot run without tiles. What its bytes look like tells nothing of the kind."""
    return bool(program.features & AMX)


def denial(manager: Manager, name: str, managed: int) -> Exit:
    """Return the end of such a program, and count it; ``managed`` is what guests have."""
    manager.count_denial()
    refusal = PermissionDenied(
        Component.TILEDATA,
        f"{name} needs TILEDATA, and guests of this KVM have {mask_text(managed)}",
        help="run it with the native engine, or on a host whose KVM has AMX, with --request tiledata",
    )
    return Exit(ExitKind.DENIED, code=refusal.component, error=refusal)
