"""The built-in scripts: contexts that use each component, are refused some, and check that nothing was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import (
    AMX,
    AVX512,
    GUEST_SUPERVISOR,
    INDEPENDENT,
    LEGACY,
    MPX,
    USER_SUPPORTED,
    Component,
    mask_of,
)
from fpstate.engine.model.pattern import by_component, initial, pattern
from fpstate.engine.model.script import Script, Setting
from fpstate.engine.model.step import (
    Ask,
    Check,
    Inspect,
    Refused,
    Release,
    Return,
    SetXfd,
    Signal,
    Step,
    Write,
    Yield,
)
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.permission import Kind

_TILEDATA: Final = mask_of(Component.TILEDATA)
_AVX: Final = mask_of(Component.AVX)
_PKRU: Final = mask_of(Component.PKRU)
_APX: Final = mask_of(Component.APX)
_CET_U: Final = mask_of(Component.CET_U)
_UINTR: Final = mask_of(Component.UINTR)
_ALL: Final = (1 << 63) - 1


def _keep(setting: Setting, components: int, *, seed: int = 0) -> Iterator[Step]:
    """Write a pattern into components, one after the other, and find it again, as often as the argument says."""
    values = pattern(setting.cpu, setting.features & components, setting.seed + (seed << 40))
    for turn in range(setting.argument):
        if turn == 0:
            yield from map(Write, by_component(values))
        yield Yield()
        yield from map(Check, by_component(values))


def _keeping(components: int) -> Callable[[Setting], Iterator[Step]]:
    """Return what keeps a pattern in some components, those that the context has of them."""

    def build(setting: Setting) -> Iterator[Step]:
        return _keep(setting, components)

    return build


def _amx(setting: Setting) -> Iterator[Step]:
    """Tiles: asked for, used for the first time, kept, released, initial then, and used again."""
    yield Ask(Component.TILEDATA)
    yield Refused(Ask(Component.TILECFG), "EOPNOTSUPP")
    yield from _keep(setting, AMX)
    yield Release()
    yield Yield()
    yield Check(initial(setting.cpu, AMX))
    yield from _keep(setting, AMX, seed=1)


def _amx_denied(setting: Setting) -> Iterator[Step]:
    """Tiles without permission: refused at the first use, and nothing else suffers."""
    others = pattern(setting.cpu, setting.features & ~AMX, setting.seed)
    yield from map(Write, by_component(others))
    for _ in range(setting.argument):
        yield Refused(Write({"tmm0": 1}), "EPERM")
        yield Yield()
        yield from map(Check, by_component(others))


def _guest_xfd(setting: Setting) -> Iterator[Step]:
    """A guest that switches tiles off: using them is its own #NM, and what they held is gone after an exit."""
    values = pattern(setting.cpu, AMX, setting.seed)
    for _ in range(setting.argument):
        yield from map(Write, by_component(values))
        yield Yield()
        yield from map(Check, by_component(values))
        yield SetXfd(_TILEDATA)
        yield Refused(Write({"tmm0": 1}), "#NM")
        yield Yield()
        yield SetXfd(0)
        yield Check(initial(setting.cpu, _TILEDATA))
        yield Check({"tilecfg": values["tilecfg"]})


def _guest_shadow_stacks(setting: Setting) -> Iterator[Step]:
    """Shadow stacks of a guest's kernel, which hosts must not have."""
    return _keep(setting, GUEST_SUPERVISOR | _CET_U)


def _host_shadow_stacks(setting: Setting) -> Iterator[Step]:
    """The same in a host: warned about and refused."""
    yield Refused(Write({"pl0_ssp": 0x1000}), "EINVAL")
    yield from _keep(setting, _CET_U)


def _signals(setting: Setting) -> Iterator[Step]:
    """A signal while everything is in use: the handler finds initial registers, uses them, and loses nothing."""
    kept = pattern(setting.cpu, setting.features, setting.seed)
    fresh = dict(initial(setting.cpu, setting.features & USER_SUPPORTED))
    if "pkru" in fresh:
        fresh["pkru"] = INIT_PKRU
    other = pattern(setting.cpu, setting.features, setting.seed + (1 << 40))
    inside = {name: other[name] for name in fresh}
    supervisor = {name: value for name, value in kept.items() if name not in fresh}
    yield from map(Write, by_component(kept))
    for _ in range(setting.argument):
        yield Signal()
        yield from map(Check, by_component(fresh))
        yield from map(Write, by_component(inside))
        yield Yield()
        yield from map(Check, by_component(inside | supervisor))
        yield Return()
        yield from map(Check, by_component(kept))


def _idle(setting: Setting) -> Iterator[Step]:
    """Nothing is used, nothing is held, everything stays initial."""
    expected = dict(initial(setting.cpu, setting.features & ~_TILEDATA & ~INDEPENDENT))
    if "pkru" in expected:
        expected["pkru"] = INIT_PKRU if setting.kind is Kind.HOST else 0
    for _ in range(setting.argument):
        yield Yield()
        yield Check(expected)


def _probe(setting: Setting) -> Iterator[Step]:
    """A fresh context looks at every register of the processor."""
    yield Inspect()
    yield Check(initial(setting.cpu, setting.features & LEGACY))


_HOST, _GUEST = Kind.HOST, Kind.GUEST
_TABLE: Final = (
    Script(
        "canary",
        "a pattern in every component that the context may use",
        _keeping(_ALL),
        asks=True,
        branches=True,
    ),
    Script("sse", "x87 and SSE alone", _keeping(LEGACY), LEGACY),
    Script("avx", "AVX, and what it lies on", _keeping(LEGACY | _AVX), _AVX),
    Script("avx512", "ZMM and opmask registers", _keeping(LEGACY | _AVX | AVX512), AVX512),
    Script("mpx", "bounds registers", _keeping(MPX), MPX),
    Script("pkru", "protection keys", _keeping(_PKRU), _PKRU),
    Script("apx", "R16 to R31", _keeping(_APX), _APX),
    Script("shadow-stack", "user shadow stacks (CET_U)", _keeping(_CET_U), _CET_U),
    Script("user-interrupts", "where a kernel keeps them; Linux does not", _keeping(_UINTR), _UINTR),
    Script(
        "branches",
        "last branch records, kept apart",
        _keeping(INDEPENDENT),
        INDEPENDENT,
        _HOST,
        branches=True,
    ),
    Script("amx", "tiles: asked for, kept, released, initial, used again", _amx, AMX, _HOST, asks=True),
    Script(
        "amx-denied",
        "tiles without permission: nothing else suffers",
        _amx_denied,
        AMX,
        _HOST,
        denied=_TILEDATA,
    ),
    Script("signals", "a signal while everything is in use", _signals, 0, _HOST, asks=True),
    Script("idle", "nothing is used, and nothing held", _idle),
    Script(
        "guest",
        "a pattern in every component of a guest, its kernel's too",
        _keeping(_ALL),
        0,
        _GUEST,
        asks=True,
    ),
    Script(
        "guest-shadow-stacks", "CET_S and CET_U of a guest", _guest_shadow_stacks, GUEST_SUPERVISOR, _GUEST
    ),
    Script("guest-xfd", "a guest that holds its tiles back by IA32_XFD", _guest_xfd, AMX, _GUEST, asks=True),
    Script(
        "host-shadow-stacks",
        "CET_S in a host: warned about and refused",
        _host_shadow_stacks,
        GUEST_SUPERVISOR,
        _HOST,
        in_mix=False,
    ),
    Script("probe", "a fresh context looks at every register", _probe, in_mix=False),
)
SCRIPTS: Final[Mapping[str, Script]] = MappingProxyType({script.name: script for script in _TABLE})
"""Every built-in script by its name."""
