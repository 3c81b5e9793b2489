"""Which engine ``fpstate run`` runs guests on: one row for each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fpstate.arch.component import AMX, mask_of, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.command.component_request import request
from fpstate.command.mix import Mix, choose, choose_scripts
from fpstate.command.quantity import count
from fpstate.engine.guest import GuestEngine
from fpstate.errors import FpStateError, UnsupportedHere
from fpstate.vso.audit import AuditReport
from fpstate.vso.kernel_permission import request_from_kernel
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind

EACH: Final = "each"
"""What ``--kvm-vcpus`` takes for a KVM vCPU for every guest."""

_ALL: Final = (1 << 63) - 1

Options = argparse.Namespace


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """How to open an engine: which processor its manager is for (None: this one), the engine over that manager, the
    programs that it runs, and how it is audited where its programs are its own. ``options`` are those of the
    command line that no other engine takes; ``modelled``: its processors are software; ``kind``: whose VSOs it makes.
    """

    open: Callable[[Manager, Options], GuestEngine[Any, Any]]
    mix: Callable[[GuestEngine[Any, Any], Options], Mix[Any]]
    cpu: Callable[[Options], Cpu | None] = lambda options: None
    audit: Callable[[GuestEngine[Any, Any]], AuditReport] | None = None
    options: tuple[str, ...] = ()
    modelled: bool = False
    kind: Kind = Kind.HOST


def _programs(engine: GuestEngine[Any, Any], options: Options) -> Mix[Any]:
    config = engine.manager.config
    return choose(
        options.program,
        config.cpu,
        offered(engine, options),
        requestable=engine.offered(_ALL),
        startable=engine.offered(_ALL) | config.user_max.features & AMX,
        format="flat" if options.flat else None,
    )


def offered(engine: GuestEngine[Any, Any], options: Options) -> int:
    """Return the components that programs are told they may use."""
    kind = Kind.GUEST if options.guest else engine.kind
    return engine.offered(engine.manager.permissions.user_mask(kind))


def open_engine(choice: EngineChoice, options: Options) -> GuestEngine[Any, Any]:
    """Return an engine over a new manager that was asked for the components of ``--request``.

    Raises UnsupportedHere, and what a refused request raises.
    """
    wanted = list(dict.fromkeys(component for each in options.request for component in each))
    if choice.modelled and wanted:
        raise FpStateError("--request is not for --engine model", help="its scripts ask for what they use")
    manager = Manager(choice.cpu(options))
    request(manager, wanted, Kind.GUEST if options.guest else choice.kind)
    if choice.kind is Kind.HOST:
        request_from_kernel(mask_of(*wanted))
    engine = choice.open(manager, options)
    if lacking := mask_of(*wanted) & ~offered(engine, options):
        engine.close()
        raise UnsupportedHere(
            f"{mask_text(lacking)} in guests of this KVM, which may have {mask_text(engine.managed)}",
            help="run with --engine native, or on a host whose KVM has it",
        )
    return engine


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
        "kvm": EngineChoice(_kvm, _programs, options=("kvm_vcpus",), kind=Kind.GUEST),
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
