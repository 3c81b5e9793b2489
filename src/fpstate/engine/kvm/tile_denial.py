"""Tiles that the processor has and guests of a KVM do not: who would use them all the same, and how that ends.

A KVM without hardware virtualization does not enforce XCR0 at CPL 3. Tiles work there until the kernel saves them for
another task, which it does without TILEDATA: then they are zeros, TILECFG stays, and no fault tells.
"""

from __future__ import annotations

from fpstate.arch.component import AMX, USER_DYNAMIC, Component, mask_text
from fpstate.engine.kvm.opcode import loads_tile_configuration
from fpstate.errors import PermissionDenied
from fpstate.program.load import Program
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import Exit, ExitKind
from fpstate.vso.vso import Vso


def uses_tiles(program: Program, *, enforced: bool) -> bool:
    """Whether a program must not be entered where guests have no tiles.

    It needs them; or, where XCR0 is not ``enforced`` and so no instruction faults, it can load a configuration and is
    not known to look first whether its block offers tiles.
    """
    if program.features & AMX:
        return True
    return not enforced and not program.optional & AMX and loads_tile_configuration(program.memory())


def denial(manager: Manager, vso: Vso, name: str, managed: int) -> Exit:
    """Return the end of such a program; ``managed`` is what guests have."""
    try:
        manager.check_use(vso, USER_DYNAMIC)
    except PermissionDenied as error:
        refusal = error
    else:
        refusal = PermissionDenied(
            Component.TILEDATA,
            f"{name} uses TILEDATA, and guests of this KVM have {mask_text(managed)}",
            help="run it with the native engine, or on a host whose KVM has AMX",
        )
    return Exit(ExitKind.DENIED, code=refusal.component, error=refusal)
