"""What one processor's CPUID says about its state components: a value that can be kept, sent and compared.

Sources: Intel SDM Vol. 1, 13.2 (enumeration by leaf 0DH), Vol. 2 CPUID page; AMD APM Vol. 3, appendix E;
gating of components by feature flags: Linux ``xsave_cpuid_features[]`` in ``arch/x86/kernel/fpu/xstate.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from fpstate.arch.component import COMPACTED_BIT, COMPONENTS, components_in
from fpstate.errors import CpuidError

if TYPE_CHECKING:
    from fpstate.arch.consistency import Contradiction

Leaves = Mapping[tuple[int, int], tuple[int, int, int, int]]
"""CPUID results, (leaf, sub-leaf) to (EAX, EBX, ECX, EDX); a leaf that is absent counts as zeros."""

Source = Literal["host", "recorded", "catalog", "model"]

_EAX, _EBX, _ECX, _EDX = range(4)
_ZEROS = (0, 0, 0, 0)

FEATURE_BITS: Final[Mapping[str, tuple[int, int, int, int]]] = MappingProxyType(
    {
        "FPU": (0x1, 0, _EDX, 0),
        "FXSR": (0x1, 0, _EDX, 24),
        "SSE": (0x1, 0, _EDX, 25),
        "POPCNT": (0x1, 0, _ECX, 23),
        "XSAVE": (0x1, 0, _ECX, 26),
        "OSXSAVE": (0x1, 0, _ECX, 27),
        "AVX": (0x1, 0, _ECX, 28),
        "HYPERVISOR": (0x1, 0, _ECX, 31),
        "HWP": (0x6, 0, _EAX, 7),
        "HDC": (0x6, 0, _EAX, 13),
        "AVX2": (0x7, 0, _EBX, 5),
        "FDP_EXCPTN_ONLY": (0x7, 0, _EBX, 6),
        "FCS_FDS_DEPRECATED": (0x7, 0, _EBX, 13),
        "MPX": (0x7, 0, _EBX, 14),
        "AVX512F": (0x7, 0, _EBX, 16),
        "AVX512DQ": (0x7, 0, _EBX, 17),
        "INTEL_PT": (0x7, 0, _EBX, 25),
        "AVX512BW": (0x7, 0, _EBX, 30),
        "AVX512VL": (0x7, 0, _EBX, 31),
        "PKU": (0x7, 0, _ECX, 3),
        "OSPKE": (0x7, 0, _ECX, 4),
        "CET_SS": (0x7, 0, _ECX, 7),
        "LA57": (0x7, 0, _ECX, 16),
        "ENQCMD": (0x7, 0, _ECX, 29),
        "UINTR": (0x7, 0, _EDX, 5),
        "LBR": (0x7, 0, _EDX, 19),
        "CET_IBT": (0x7, 0, _EDX, 20),
        "AMX_BF16": (0x7, 0, _EDX, 22),
        "AMX_TILE": (0x7, 0, _EDX, 24),
        "AMX_INT8": (0x7, 0, _EDX, 25),
        "APX_F": (0x7, 1, _EDX, 21),
        "XSAVEOPT": (0xD, 1, _EAX, 0),
        "XSAVEC": (0xD, 1, _EAX, 1),
        "XGETBV1": (0xD, 1, _EAX, 2),
        "XSAVES": (0xD, 1, _EAX, 3),
        "XFD": (0xD, 1, _EAX, 4),
        "MISALIGNSSE": (0x80000001, 0, _ECX, 7),
        "LWP": (0x80000001, 0, _ECX, 15),
        "RSTRFPERRPTRS": (0x80000008, 0, _EBX, 2),
    }
)
"""Where each feature flag is: (leaf, sub-leaf, register 0-3 for EAX-EDX, bit)."""

_MXCSR_MASK = 0x0000FFFF
_MXCSR_MASK_MISALIGNED = 0x0002FFFF
_AMD_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})


@dataclass(frozen=True, slots=True)
class Geometry:
    """One component as CPUID.(0DH,n) describes it, n >= 2; ``size`` and ``offset`` in bytes.

    ``offset`` is that of the standard format and 0 for a supervisor component, which has none there;
    ``aligned``: begins at a multiple of 64 in the compacted format (ECX[1]); ``xfd``: ECX[2].
    """

    size: int
    offset: int
    supervisor: bool
    aligned: bool
    xfd: bool


@dataclass(frozen=True)
class Cpu:
    """One processor's state components.

    ``xcr0`` and ``xss`` are the raw bitmaps of what could be enabled (D.0 EDX:EAX, D.1 EDX:ECX), ``geometry``
    has an entry for each enumerated component from 2 on; ``enabled_xcr0`` is XGETBV(0) where it is known.
    ``standard_size``, ``enabled_size`` and ``compacted_size`` are the bytes that CPUID itself states for all
    of XCR0 (D.0 ECX), for what was enabled (D.0 EBX) and for XCR0|IA32_XSS compacted (D.1 EBX), or 0.
    ``provenance`` names the dump or the model. Values compare by content and can be hashed and pickled.
    """

    name: str
    vendor: str
    family: int
    model: int
    stepping: int
    source: Source
    xcr0: int
    xss: int
    features: frozenset[str]
    geometry: Mapping[int, Geometry] = field(hash=False)
    enabled_xcr0: int | None
    mxcsr_mask: int
    standard_size: int = 0
    enabled_size: int = 0
    compacted_size: int = 0
    provenance: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "geometry", MappingProxyType(dict(self.geometry)))

    def __reduce__(self) -> tuple[type[Cpu], tuple[Any, ...]]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Cpu, tuple({**values, "geometry": dict(self.geometry)}.values())

    @classmethod
    def from_cpuid(
        cls,
        leaves: Leaves,
        *,
        name: str,
        source: Source = "recorded",
        enabled_xcr0: int | None = None,
        mxcsr_mask: int | None = None,
        provenance: str = "",
    ) -> Self:
        """Read a processor from its CPUID leaves; 0, 1, 6, 7, 0DH, 80000001H and 80000008H are looked at.

        Without ``mxcsr_mask`` (bytes 28-31 of an FXSAVE image) the usual value is taken: 2FFFFH where
        MISALIGNSSE gives MXCSR bit 17, else FFFFH. Raises CpuidError when leaf 1 is missing or a register
        does not fit 32 bits; what is there but disagrees with itself is for ``contradictions()`` to report.
        """
        if (1, 0) not in leaves:
            raise CpuidError(f"{name}: CPUID leaf 1 is missing", help="leaves 0, 1, 7 and 0DH are needed")
        for key, registers in leaves.items():
            if len(registers) != 4 or not all(0 <= value < 1 << 32 for value in registers):
                raise CpuidError(f"{name}: CPUID leaf {key[0]:#x}.{key[1]} is not four 32-bit registers")
        features = frozenset(flag for flag, place in FEATURE_BITS.items() if _bit(leaves, *place))
        main, extended = leaves.get((0xD, 0), _ZEROS), leaves.get((0xD, 1), _ZEROS)
        family, model, stepping = _signature(leaves[1, 0][_EAX])
        if mxcsr_mask is None:
            mxcsr_mask = _MXCSR_MASK_MISALIGNED if "MISALIGNSSE" in features else _MXCSR_MASK
        return cls(
            name=name,
            vendor=_vendor(leaves.get((0, 0), _ZEROS)),
            family=family,
            model=model,
            stepping=stepping,
            source=source,
            xcr0=main[_EDX] << 32 | main[_EAX],
            xss=extended[_EDX] << 32 | extended[_ECX],
            features=features,
            geometry=_geometry(leaves),
            enabled_xcr0=enabled_xcr0,
            mxcsr_mask=mxcsr_mask,
            standard_size=main[_ECX],
            enabled_size=main[_EBX],
            compacted_size=extended[_EBX],
            provenance=provenance,
        )

    @classmethod
    def catalog(cls, name: str) -> Cpu:
        """Return a recorded or modelled processor; raises UnknownCpu, which lists the names."""
        from fpstate.arch.catalog import load

        return load(name)

    @classmethod
    def catalog_names(cls) -> tuple[str, ...]:
        """Return the names that ``catalog`` knows, sorted."""
        from fpstate.arch.catalog import names

        return names()

    @classmethod
    def host(cls) -> Cpu:
        """Ask the processor this runs on; raises UnsupportedHere without the native core."""
        from fpstate.arch.host import host_cpu

        return host_cpu()

    def has(self, feature: str) -> bool:
        """Whether CPUID sets this feature flag, by its name in ``FEATURE_BITS``."""
        return feature in self.features

    @property
    def is_amd(self) -> bool:
        """Whether this is AMD's, or a descendant (Hygon). All others are taken to behave as Intel's do."""
        return self.vendor in _AMD_VENDORS

    @property
    def user_mask(self) -> int:
        """User components that have their feature flag too: ``xcr0`` without phantoms.

        AMD Zen 2 enumerates component 9 without PKU, and the component is not to be used.
        """
        return self._gated(self.xcr0)

    @property
    def supervisor_mask(self) -> int:
        """Supervisor components that have their feature flag too; 0 without XSAVES, their only way out."""
        return self._gated(self.xss) if self.has("XSAVES") else 0

    def contradictions(self) -> tuple[Contradiction, ...]:
        """Return where this record disagrees with itself or with the architecture; empty when it does not."""
        from fpstate.arch.consistency import contradictions

        return contradictions(self)

    def _gated(self, mask: int) -> int:
        return sum(1 << n for n in components_in(mask) if n in COMPONENTS and self.has(COMPONENTS[n].feature))


def _bit(leaves: Leaves, leaf: int, subleaf: int, register: int, bit: int) -> bool:
    return bool(leaves.get((leaf, subleaf), _ZEROS)[register] >> bit & 1)


def _vendor(leaf_0: tuple[int, int, int, int]) -> str:
    text = b"".join(leaf_0[register].to_bytes(4, "little") for register in (_EBX, _EDX, _ECX))
    return text.rstrip(b"\0").decode("latin-1")


def _signature(eax: int) -> tuple[int, int, int]:
    """Split CPUID.1:EAX into display family, display model and stepping (SDM Vol. 2, CPUID page)."""
    family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
    if family in (6, 15):
        model |= eax >> 12 & 0xF0
    if family == 15:
        family += eax >> 20 & 0xFF
    return family, model, eax & 0xF


def _geometry(leaves: Leaves) -> dict[int, Geometry]:
    table = {}
    for number in components_in(~(COMPACTED_BIT | 3) & (1 << 64) - 1):
        size, offset, flags, _ = leaves.get((0xD, number), _ZEROS)
        if size:
            table[number] = Geometry(size, offset, bool(flags & 1), bool(flags & 2), bool(flags & 4))
    return table
