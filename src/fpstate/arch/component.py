"""The table of XSAVE state components: numbers, sizes, gates and the registers inside each.

Sources: Intel SDM Vol. 1, 13.1 and 13.5 (components, their layouts); AMD APM Vol. 2, 11.5 (LWP);
Linux ``enum xfeature``, ``xsave_cpuid_features[]`` and the ``XFEATURE_MASK_*`` constants in
``arch/x86/include/asm/fpu/types.h`` and ``xstate.h``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Component(enum.IntEnum):
    """The number of a state component: its bit in XCR0 or IA32_XSS, XSTATE_BV and XCOMP_BV."""

    X87 = 0
    SSE = 1
    AVX = 2
    BNDREGS = 3
    BNDCSR = 4
    OPMASK = 5
    ZMM_HI256 = 6
    HI16_ZMM = 7
    PT = 8
    PKRU = 9
    PASID = 10
    CET_U = 11
    CET_S = 12
    HDC = 13
    UINTR = 14
    LBR = 15
    HWP = 16
    TILECFG = 17
    TILEDATA = 18
    APX = 19
    LWP = 62


@dataclass(frozen=True, slots=True)
class Field:
    """One register, or part of one, inside a component: ``offset`` and ``size`` in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """What the architecture says about one component; a given processor's CPUID may still differ.

    ``size`` is in bytes, ``feature`` the CPUID flag without which the component is not to be used,
    ``guest_only`` says that Linux keeps it for KVM guests alone, ``dynamic`` that Linux gives it on request.
    """

    component: Component
    title: str
    supervisor: bool
    size: int
    feature: str
    fields: tuple[Field, ...]
    guest_only: bool = False
    dynamic: bool = False


LEGACY_SIZE: Final = 512
"""Bytes of the legacy region, the FXSAVE64 image (SDM Vol. 1, 13.4.1)."""
HEADER_SIZE: Final = 64
"""Bytes of the XSAVE header behind the legacy region (SDM Vol. 1, 13.4.2)."""
MIN_SIZE: Final = LEGACY_SIZE + HEADER_SIZE
"""No XSAVE image is shorter than this many bytes."""
LEGACY_PLACES: Final[Mapping[int, tuple[int, int]]] = MappingProxyType(
    {Component.X87: (0, 160), Component.SSE: (160, 256)}
)
"""Offset and size of the two components that lie in the legacy region in either format."""
MXCSR_FIELDS: Final = (Field("mxcsr", 24, 4), Field("mxcsr_mask", 28, 4))
"""MXCSR belongs to SSE but lies among the x87 fields: these offsets count from the start of the image."""
COMPACTED_BIT: Final = 1 << 63
"""XCOMP_BV[63]: the image is in the compacted format. Never a component."""


def _row(pattern: str, numbers: range, stride: int, *, start: int = 0, size: int = 0) -> tuple[Field, ...]:
    return tuple(
        Field(pattern.format(number), start + index * stride, size or stride)
        for index, number in enumerate(numbers)
    )


def _run(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, 8 * index, 8) for index, name in enumerate(names))


_X87 = (
    *(Field("fcw", 0, 2), Field("fsw", 2, 2), Field("ftw", 4, 1), Field("fop", 6, 2)),
    *(Field("fip", 8, 8), Field("fdp", 16, 8)),
    *_row("st{}", range(8), 16, start=32, size=10),
)
_PT = _run(
    *("rtit_ctl", "rtit_output_base", "rtit_output_mask_ptrs", "rtit_status", "rtit_cr3_match"),
    *("rtit_addr0_a", "rtit_addr0_b", "rtit_addr1_a", "rtit_addr1_b"),
)
_UINTR = (
    *(Field("uintr_handler", 0, 8), Field("uintr_stackadjust", 8, 8), Field("uintr_tt_size", 16, 4)),
    *(Field("uintr_uinv", 20, 1), Field("uintr_uif", 23, 1)),
    *(Field("uintr_pd", 24, 8), Field("uintr_rr", 32, 8), Field("uintr_tt", 40, 8)),
)
_LBR = _run(
    *("lbr_ctl", "lbr_depth", "ler_from_ip", "ler_to_ip", "ler_info"),
    *(f"lbr_{entry}_{part}" for entry in range(32) for part in ("from_ip", "to_ip", "info")),
)
_TILECFG = (
    *(Field("palette_id", 0, 1), Field("start_row", 1, 1)),
    *_row("tile{}_colsb", range(8), 2, start=16),
    *_row("tile{}_rows", range(8), 1, start=48),
)

_C = Component
_TABLE = (
    ComponentInfo(_C.X87, "x87 floating point", False, 160, "FPU", _X87),
    ComponentInfo(_C.SSE, "SSE registers", False, 256, "SSE", _row("xmm{}", range(16), 16)),
    ComponentInfo(_C.AVX, "AVX: YMM upper halves", False, 256, "AVX", _row("ymm{}h", range(16), 16)),
    ComponentInfo(_C.BNDREGS, "MPX bounds", False, 64, "MPX", _row("bnd{}", range(4), 16)),
    ComponentInfo(_C.BNDCSR, "MPX configuration", False, 64, "MPX", _run("bndcfgu", "bndstatus")),
    ComponentInfo(_C.OPMASK, "AVX-512 opmask", False, 64, "AVX512F", _row("k{}", range(8), 8)),
    ComponentInfo(
        _C.ZMM_HI256, "AVX-512: ZMM0-15 upper halves", False, 512, "AVX512F", _row("zmm{}h", range(16), 32)
    ),
    ComponentInfo(_C.HI16_ZMM, "AVX-512: ZMM16-31", False, 1024, "AVX512F", _row("zmm{}", range(16, 32), 64)),
    ComponentInfo(_C.PT, "Processor Trace", True, 128, "INTEL_PT", _PT),
    ComponentInfo(_C.PKRU, "user protection keys", False, 8, "PKU", (Field("pkru", 0, 4),)),
    ComponentInfo(_C.PASID, "process address space id", True, 8, "ENQCMD", _run("pasid")),
    ComponentInfo(_C.CET_U, "CET user state", True, 16, "CET_SS", _run("u_cet", "pl3_ssp")),
    ComponentInfo(
        *(_C.CET_S, "CET supervisor shadow stacks", True, 24, "CET_SS"),
        _run("pl0_ssp", "pl1_ssp", "pl2_ssp"),
        guest_only=True,
    ),
    ComponentInfo(_C.HDC, "hardware duty cycling", True, 8, "HDC", _run("pm_ctl1")),
    ComponentInfo(_C.UINTR, "user interrupts", True, 48, "UINTR", _UINTR),
    ComponentInfo(_C.LBR, "last branch records", True, 808, "LBR", _LBR),
    ComponentInfo(_C.HWP, "hardware P-state request", True, 8, "HWP", _run("hwp_request")),
    ComponentInfo(_C.TILECFG, "AMX tile configuration", False, 64, "AMX_TILE", _TILECFG),
    ComponentInfo(
        *(_C.TILEDATA, "AMX tile data", False, 8192, "AMX_TILE"),
        _row("tmm{}", range(8), 1024),
        dynamic=True,
    ),
    ComponentInfo(_C.APX, "APX: R16-R31", False, 128, "APX_F", _row("r{}", range(16, 32), 8)),
    ComponentInfo(_C.LWP, "lightweight profiling", False, 128, "LWP", (Field("lwp", 0, 128),)),
)

COMPONENTS: Final[Mapping[int, ComponentInfo]] = MappingProxyType({row.component: row for row in _TABLE})
"""Every component that has a name, by number."""


def mask_of(*components: int) -> int:
    """Return the bitmap with the bits of these component numbers set."""
    mask = 0
    for component in components:
        mask |= 1 << component
    return mask


def components_in(mask: int) -> Iterator[int]:
    """Yield the component numbers in a bitmap, ascending; the compaction bit 63 is not one of them."""
    mask &= ~COMPACTED_BIT
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def component_name(component: int) -> str:
    """Return the name of a component, ``component20`` for a number that has none."""
    info = COMPONENTS.get(component)
    return info.component.name if info else f"component{component}"


def mask_names(mask: int) -> tuple[str, ...]:
    """Return the names of the components in a bitmap, in ascending order of their numbers."""
    return tuple(component_name(component) for component in components_in(mask))


def mask_text(mask: int) -> str:
    """Return a bitmap as ``X87|SSE|AVX``, or ``none``."""
    return "|".join(mask_names(mask)) or "none"


LEGACY: Final = mask_of(_C.X87, _C.SSE)
"""What FXSAVE knows, and every x86-64 processor has."""
MPX: Final = mask_of(_C.BNDREGS, _C.BNDCSR)
AVX512: Final = mask_of(_C.OPMASK, _C.ZMM_HI256, _C.HI16_ZMM)
AMX: Final = mask_of(_C.TILECFG, _C.TILEDATA)
USER_SUPPORTED: Final = LEGACY | mask_of(_C.AVX, _C.PKRU, _C.APX) | MPX | AVX512 | AMX
"""User components that Linux handles (``XFEATURE_MASK_USER_SUPPORTED``)."""
USER_DYNAMIC: Final = mask_of(_C.TILEDATA)
"""Those given on request only (``XFEATURE_MASK_USER_DYNAMIC``)."""
GUEST_SUPERVISOR: Final = mask_of(_C.CET_S)
"""Supervisor components kept for KVM guests alone (``XFEATURE_MASK_GUEST_SUPERVISOR``, Linux 6.17)."""
SUPERVISOR_SUPPORTED: Final = mask_of(_C.PASID, _C.CET_U) | GUEST_SUPERVISOR
"""Supervisor components in Linux's buffers (``XFEATURE_MASK_SUPERVISOR_SUPPORTED``)."""
INDEPENDENT: Final = mask_of(_C.LBR)
"""Saved by perf into buffers of its own (``XFEATURE_MASK_INDEPENDENT``)."""


@dataclass(frozen=True, slots=True)
class _Xcr0Rule:
    some_of: int
    all_of: int
    text: str


_XCR0_RULES = (
    _Xcr0Rule(mask_of(_C.AVX), mask_of(_C.SSE), "AVX needs SSE"),
    _Xcr0Rule(MPX, MPX, "BNDREGS and BNDCSR go together"),
    _Xcr0Rule(
        AVX512, AVX512 | mask_of(_C.AVX, _C.SSE), "AVX-512 needs OPMASK, ZMM_HI256, HI16_ZMM, AVX and SSE"
    ),
    _Xcr0Rule(AMX, AMX, "TILECFG and TILEDATA go together"),
)


def xcr0_problem(mask: int, supported: int) -> str | None:
    """Say why XSETBV would refuse this XCR0 with #GP, or return None where it would not.

    ``supported`` is CPUID.(0DH,0):EDX:EAX. Source: SDM Vol. 1, 13.3, and the XSETBV page of Vol. 2.
    """
    if not mask & 1:
        return "bit 0 (x87) must be set"
    if excess := mask & ~supported:
        return f"not supported by this processor: {mask_text(excess)} ({excess:#x})"
    for rule in _XCR0_RULES:
        if mask & rule.some_of and rule.all_of & ~mask:
            return f"{rule.text}: {mask_text(rule.all_of & ~mask)} missing"
    if mask & MPX and mask & mask_of(_C.APX):
        return "APX lies where MPX would: the two cannot be enabled together"
    return None


def xcr0_complete(mask: int) -> int:
    """Return what of a mask XSETBV takes: groups that are incomplete are left out whole, x87 is put in.

    KVM does so with TILECFG where TILEDATA is not permitted (``kvm_get_filtered_xcr0``, Linux 6.4).
    """
    mask |= 1
    for _ in _XCR0_RULES:
        for rule in _XCR0_RULES:
            if rule.all_of & ~mask:
                mask &= ~rule.some_of
    return mask
