"""What processors may do differently: the parameters of the model, each with its source."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from fpstate.arch.cpu import Cpu

_LINEAR_BITS: Final = {True: 57, False: 48}
_AMD: Final = frozenset({"AuthenticAMD", "HygonGenuine"})


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
    ``pointers``: see ``Pointers``. ``pointer_bits``: a restore with REX.W keeps so many bits of FIP and FDP and
    extends the highest as a sign. ``selectors``: FCS and FDS exist for saves without REX.W.
    ``upper_in_use``: outside 64-bit mode XINUSE[7] still tells of ZMM16 to ZMM31, though no save writes them.
    ``modified_optimisation``: XSAVEOPT and XSAVES leave out what was not modified since the restore from the
    same area. ``writes_disabled``: XSAVE writes a component that IA32_XFD holds back, as initial.
    ``shows_disabled``: XGETBV with ECX = 1 shows such a component's XINUSE bit all the same.
    """

    tracks_values: bool = False
    pointers: Pointers = Pointers.KEPT
    pointer_bits: int = 64
    selectors: bool = False
    upper_in_use: bool = False
    modified_optimisation: bool = True
    writes_disabled: bool = True
    shows_disabled: bool = False

    @classmethod
    def of(cls, cpu: Cpu) -> Self:
        """Return how a processor behaves as far as its vendor and its feature flags tell."""
        amd = cpu.vendor in _AMD
        zeroed = Pointers.ZEROED if cpu.has("RSTRFPERRPTRS") else Pointers.UNTOUCHED
        return cls(
            tracks_values=amd and cpu.has("XGETBV1"),
            upper_in_use=amd,
            pointers=zeroed if amd else Pointers.KEPT,
            pointer_bits=_LINEAR_BITS[cpu.has("AVX512F")] if amd else 64,
            selectors=not cpu.has("FCS_FDS_DEPRECATED"),
        )


SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tracks_values": "SDM Vol. 1, 13.6 leaves XINUSE to the processor; by value: measured on Zen 4 and Zen 5",
        "pointers": "APM Vol. 2, 11.4.4 (FXSAVE) and CPUID Fn8000_0008_EBX[RstrFpErrPtrs]; X86_BUG_FXSAVE_LEAK",
        "pointer_bits": "no manual; the width of a linear address: 57 measured on Zen 5, 48 assumed before Zen 4",
        "selectors": "SDM Vol. 1, 8.1.8, CPUID.(07H,0):EBX[13]",
        "upper_in_use": "SDM Vol. 1, 13.6: initial outside 64-bit mode; in use all the same: measured on Zen 5",
        "modified_optimisation": "SDM Vol. 1, 13.9 (XSAVEOPT), 13.11 (XSAVES); measured on Zen 4 and Zen 5",
        "writes_disabled": "SDM Vol. 1, 13.14: saves treat the component as initial, XSAVE may write it",
        "shows_disabled": "SDM Vol. 1, 13.14 does not say; an assumption",
    }
)
"""Where each parameter comes from, by the name of its field in ``Behaviour``."""
