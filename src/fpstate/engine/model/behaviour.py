"""What processors may do differently: the parameters of the model, each with its source."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from fpstate.arch.cpu import Cpu

_LINEAR_BITS: Final = {True: 57, False: 48}


class Pointers(enum.Enum):
    """What becomes of FOP, FIP and FDP in a save while no unmasked x87 exception is pending (FSW.ES = 0)."""

    KEPT = "kept"
    """The last values are saved, as on Intel processors."""
    ZEROED = "zeroed"
    """Zeros are saved; restores load the fields. AMD with RstrFpErrPtrs, that is from Zen on."""
    UNTOUCHED = "untouched"
    """They are neither saved nor restored, and the area keeps what was there. AMD before Zen."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One processor's choices where the architecture leaves one, or where the vendors differ.

    ``tracks_values``: XINUSE[i] tells whether the registers hold something else than their initial values;
    otherwise it tells whether they were written since they were last initialised.
    ``pointers``: see ``Pointers``. ``fip_bits`` and ``fdp_bits``: a restore with REX.W keeps so many bits of FIP and
    FDP and extends the highest as a sign. ``selectors``: FCS and FDS exist for saves without REX.W.
    ``pointers_on_exception``: x87 instructions set FOP and FDP only where an unmasked exception is then pending.
    ``upper_in_use``: outside 64-bit mode XINUSE still tells of registers that exist in 64-bit mode alone.
    ``modified_optimisation``: XSAVEOPT and XSAVES leave out what was not modified since the restore from the
    same area. ``writes_disabled``: XSAVE writes a component that IA32_XFD holds back, as initial.
    ``shows_disabled``: XGETBV with ECX = 1 shows such a component's XINUSE bit all the same.
    ``reads_absent``: in the compacted format too, the last byte of what is asked for is touched, present or not.
    ``header_first``: a header that is illegal is noticed before memory that ends too early.
    ``partial_restore``: an XRSTOR that is refused for a compacted image's MXCSR has initialised what is absent, but
    for PKRU, and has loaded x87 and XMM. ``pkru_padding``: saves write the reserved bytes after PKRU too, as zeros.
    """

    tracks_values: bool = False
    pointers: Pointers = Pointers.KEPT
    fip_bits: int = 64
    fdp_bits: int = 64
    selectors: bool = False
    pointers_on_exception: bool = False
    upper_in_use: bool = False
    modified_optimisation: bool = True
    writes_disabled: bool = True
    shows_disabled: bool = False
    reads_absent: bool = True
    header_first: bool = False
    partial_restore: bool = False
    pkru_padding: bool = False

    @classmethod
    def of(cls, cpu: Cpu) -> Self:
        """Return how a processor behaves as far as its vendor and its feature flags tell."""
        amd = cpu.is_amd
        zeroed = Pointers.ZEROED if cpu.has("RSTRFPERRPTRS") else Pointers.UNTOUCHED
        linear = _LINEAR_BITS[cpu.has("AVX512F" if amd else "LA57")]
        return cls(
            tracks_values=amd and cpu.has("XGETBV1"),
            pointers=zeroed if amd else Pointers.KEPT,
            fip_bits=linear,
            fdp_bits=linear if amd else 64,
            selectors=not cpu.has("FCS_FDS_DEPRECATED"),
            pointers_on_exception=cpu.has("FDP_EXCPTN_ONLY"),
            upper_in_use=amd,
            reads_absent=not amd,
            header_first=amd,
            partial_restore=not amd,
            pkru_padding=amd,
        )


SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tracks_values": "SDM Vol. 1, 13.6 leaves XINUSE to the processor; by value: measured on Zen 4 and Zen 5, "
        "by writes: measured on Emerald Rapids",
        "pointers": "APM Vol. 2, 11.4.4 (FXSAVE) and CPUID Fn8000_0008_EBX[RstrFpErrPtrs]; X86_BUG_FXSAVE_LEAK",
        "fip_bits": "no manual; the width of a linear address: 57 measured on Zen 4, Zen 5 and Emerald Rapids (LA57), "
        "48 assumed for the others",
        "fdp_bits": "no manual; as FIP measured on Zen 4 and Zen 5, 64 measured on Emerald Rapids",
        "selectors": "SDM Vol. 1, 8.1.8, CPUID.(07H,0):EBX[13]",
        "pointers_on_exception": "SDM Vol. 1, 8.1.8, CPUID.(07H,0):EBX[6] (FDP); FOP too: measured on Emerald Rapids",
        "upper_in_use": "SDM Vol. 1, 13.6: initial outside 64-bit mode: measured on Emerald Rapids; in use all the "
        "same: measured on Zen 5",
        "modified_optimisation": "SDM Vol. 1, 13.9 (XSAVEOPT), 13.11 (XSAVES); measured on Zen 4, Zen 5 and Emerald "
        "Rapids",
        "writes_disabled": "SDM Vol. 1, 13.14: saves treat the component as initial, XSAVE may write it; that it "
        "does: measured on Emerald Rapids",
        "shows_disabled": "SDM Vol. 1, 13.14 does not say; an assumption",
        "reads_absent": "SDM Vol. 1, 13.13 allows any byte of what is operated on; measured on Emerald Rapids, and "
        "that it is not so on Zen 4",
        "header_first": "no manual; measured on Zen 4, and that it is not so on Emerald Rapids",
        "partial_restore": "no manual; measured on Emerald Rapids, and that it is not so on Zen 4 and Zen 5",
        "pkru_padding": "SDM Vol. 1, 13.5.7: bytes 4 to 7 are reserved; not written: measured on Emerald Rapids; "
        "written: an assumption",
    }
)
"""Where each parameter comes from, by the name of its field in ``Behaviour``."""
