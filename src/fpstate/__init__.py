"""fpstate: the floating-point and vector state of a context as an object.

The public names. Those that need the native core are found when they are asked for, so that ``import fpstate``
works where the core cannot be built; using them there raises ``UnsupportedHere``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fpstate import errors
from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.errors import FpStateError, GuestOnlyComponentWarning
from fpstate.image import Float80, Image, Mxcsr, Registers

if TYPE_CHECKING:
    from fpstate.engine.kvm.engine import KvmEngine
    from fpstate.engine.leak import audit
    from fpstate.engine.model.engine import ModelEngine
    from fpstate.engine.native import NativeEngine
    from fpstate.program import Program, get_include
    from fpstate.source.guest_state import GuestState
    from fpstate.source.state_file import read_state, write_state
    from fpstate.vso import Kind, Manager, Pool, Scheduler, Vso
    from fpstate.vso.switching import Context, Order, switch

_LATER = {
    "Context": "fpstate.vso.switching",
    "GuestState": "fpstate.source.guest_state",
    "Kind": "fpstate.vso",
    "KvmEngine": "fpstate.engine.kvm.engine",
    "Manager": "fpstate.vso",
    "ModelEngine": "fpstate.engine.model.engine",
    "NativeEngine": "fpstate.engine.native",
    "Order": "fpstate.vso.switching",
    "Pool": "fpstate.vso",
    "Program": "fpstate.program",
    "Scheduler": "fpstate.vso",
    "Vso": "fpstate.vso",
    "audit": "fpstate.engine.leak",
    "get_include": "fpstate.program",
    "read_state": "fpstate.source.state_file",
    "switch": "fpstate.vso.switching",
    "write_state": "fpstate.source.state_file",
}

__all__ = [
    "Component",
    "Context",
    "Cpu",
    "Float80",
    "Format",
    "FpStateError",
    "GuestOnlyComponentWarning",
    "GuestState",
    "Image",
    "Kind",
    "KvmEngine",
    "Layout",
    "Manager",
    "ModelEngine",
    "Mxcsr",
    "NativeEngine",
    "Order",
    "Pool",
    "Program",
    "Registers",
    "Scheduler",
    "Vso",
    "audit",
    "errors",
    "get_include",
    "read_state",
    "switch",
    "write_state",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
