"""fpstate: the floating-point and vector state of a context as an object.

The public names. They are found when they are asked for: ``import fpstate`` works where the native core cannot be
built, and using what needs it raises ``UnsupportedHere`` there; and the command, which imports this first, gets to
its own lines before an interrupt can come.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fpstate import errors
    from fpstate.arch import Component, Cpu, Format, Layout
    from fpstate.engine.kvm.engine import KvmEngine
    from fpstate.engine.leak import audit
    from fpstate.engine.model.engine import ModelEngine
    from fpstate.engine.native import NativeEngine
    from fpstate.errors import FpStateError, GuestOnlyComponentWarning
    from fpstate.image import Float80, Image, Mxcsr, Registers
    from fpstate.program import Program, get_include
    from fpstate.source.guest_state import GuestState
    from fpstate.source.state_file import read_state, write_state
    from fpstate.vso import Kind, Manager, Pool, Scheduler, Vso
    from fpstate.vso.switching import Context, Order, switch

_LATER = {
    "Component": "fpstate.arch",
    "Context": "fpstate.vso.switching",
    "Cpu": "fpstate.arch",
    "Float80": "fpstate.image",
    "Format": "fpstate.arch",
    "FpStateError": "fpstate.errors",
    "GuestOnlyComponentWarning": "fpstate.errors",
    "GuestState": "fpstate.source.guest_state",
    "Image": "fpstate.image",
    "Kind": "fpstate.vso",
    "KvmEngine": "fpstate.engine.kvm.engine",
    "Layout": "fpstate.arch",
    "Manager": "fpstate.vso",
    "ModelEngine": "fpstate.engine.model.engine",
    "Mxcsr": "fpstate.image",
    "NativeEngine": "fpstate.engine.native",
    "Order": "fpstate.vso.switching",
    "Pool": "fpstate.vso",
    "Program": "fpstate.program",
    "Registers": "fpstate.image",
    "Scheduler": "fpstate.vso",
    "Vso": "fpstate.vso",
    "audit": "fpstate.engine.leak",
    "errors": "fpstate",
    "get_include": "fpstate.program",
    "read_state": "fpstate.source.state_file",
    "switch": "fpstate.vso.switching",
    "write_state": "fpstate.source.state_file",
}

_ROOMS = ("arch", "image")
"""Sub-packages that an import of this one has always given."""

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
    home = _LATER.get(name)
    if home == __name__ or name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if home is not None:
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
