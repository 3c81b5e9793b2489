"""Which engine ``fpstate run`` runs guests on: one row for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fpstate.arch.cpu import Cpu
from fpstate.command.mix import Mix, choose, choose_scripts
from fpstate.command.quantity import count
from fpstate.engine.guest import GuestEngine
from fpstate.errors import FpStateError
from fpstate.vso.audit import AuditReport
from fpstate.vso.manager import Manager

EACH: Final = "each"
"""What ``--kvm-vcpus`` takes for a KVM vCPU for every guest."""

Options = argparse.Namespace


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """How to open an engine: which processor its manager is for (None: this one), the engine over that manager, the
    programs that it runs, and how it is audited where its programs are its own. ``options`` are those of the
    command line that no other engine takes; ``modelled``: its processors are software."""

    open: Callable[[Manager, Options], GuestEngine[Any, Any]]
    mix: Callable[[GuestEngine[Any, Any], Options], Mix[Any]]
    cpu: Callable[[Options], Cpu | None] = lambda options: None
    audit: Callable[[GuestEngine[Any, Any]], AuditReport] | None = None
    options: tuple[str, ...] = ()
    modelled: bool = False


def _programs(engine: GuestEngine[Any, Any], options: Options) -> Mix[Any]:
    cpu = engine.manager.config.cpu
    return choose(options.program, cpu, engine.managed, format="flat" if options.flat else None)


def _native(manager: Manager, options: Options) -> GuestEngine[Any, Any]:
    from fpstate.engine.native import NativeEngine

    return NativeEngine(manager, timeout=options.timeout / 1e9)


def _kvm(manager: Manager, options: Options) -> GuestEngine[Any, Any]:
    from fpstate.engine.kvm.engine import KvmEngine

    each = options.kvm_vcpus == EACH
    vcpus = None if each else options.kvm_vcpus
    return KvmEngine(manager, timeout=options.timeout / 1e9, vcpus=vcpus or options.processors, each=each)


def _model(manager: Manager, options: Options) -> GuestEngine[Any, Any]:
    from fpstate.engine.model.engine import ModelEngine

    return ModelEngine(manager, timeout=options.timeout / 1e9)


def _model_cpu(options: Options) -> Cpu | None:
    return Cpu.catalog(options.cpu) if options.cpu else None


def _model_audit(engine: GuestEngine[Any, Any]) -> AuditReport:
    from fpstate.engine.model.engine import ModelEngine
    from fpstate.engine.model.leak import audit

    assert isinstance(engine, ModelEngine)
    return audit(engine)


def _scripts(engine: GuestEngine[Any, Any], options: Options) -> Mix[Any]:
    return choose_scripts(options.program, engine.managed, guests_only=options.guest)


ENGINES: Final[Mapping[str, EngineChoice]] = MappingProxyType(
    {
        "native": EngineChoice(_native, _programs),
        "kvm": EngineChoice(_kvm, _programs, options=("kvm_vcpus",)),
        "model": EngineChoice(_model, _scripts, _model_cpu, _model_audit, options=("cpu",), modelled=True),
    }
)
"""Every engine by the name that ``--engine`` takes."""


def kvm_vcpus(text: str) -> int | str:
    """Read the value of ``--kvm-vcpus``: a count, or ``each``."""
    return EACH if text == EACH else count(text)


def chosen(options: Options) -> EngineChoice:
    """Return the engine asked for. Raises FpStateError where an option is given that only another engine takes."""
    for name, choice in ENGINES.items():
        for option in choice.options:
            if name != options.engine and getattr(options, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise FpStateError(
                    f"{flag} is for --engine {name}", help=f"leave {flag} out, or name that engine"
                )
    return ENGINES[options.engine]
