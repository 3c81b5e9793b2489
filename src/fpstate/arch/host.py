"""The processor this runs on, asked through the native core."""

from __future__ import annotations

from fpstate.arch.component import COMPACTED_BIT
from fpstate.arch.cpu import Cpu, Leaves
from fpstate.errors import UnsupportedHere

_COMPONENT_NUMBERS = range(2, COMPACTED_BIT.bit_length() - 1)
_OSXSAVE = 1 << 27


def host_cpu() -> Cpu:
    """Read CPUID, XCR0 and MXCSR_MASK of this processor.

    Raises UnsupportedHere where the native core is not built. ``enabled_xcr0`` is None when the operating
    system has not set CR4.OSXSAVE (CPUID.1:ECX[27]), since XGETBV would fault.
    """
    try:
        from fpstate._core import cpuid, mxcsr_mask, xgetbv
    except ImportError as error:
        raise UnsupportedHere(
            f"the native core (fpstate._core) cannot be imported: {error}",
            help="build the package on x86-64 Linux, or name a recorded processor such as sapphire-rapids",
        ) from error

    highest = cpuid(0, 0)[0]
    highest_extended = cpuid(0x80000000, 0)[0]
    wanted = [(0, 0), (1, 0), (6, 0), (7, 0), (7, 1), *((0xD, n) for n in (0, 1, *_COMPONENT_NUMBERS))]
    wanted += [(0x80000001, 0), (0x80000008, 0)]
    leaves: Leaves = {
        key: cpuid(*key) for key in wanted if key[0] <= (highest if key[0] < 1 << 31 else highest_extended)
    }
    enabled = xgetbv(0) if leaves[1, 0][2] & _OSXSAVE else None
    return Cpu.from_cpuid(
        leaves,
        name="host",
        source="host",
        enabled_xcr0=enabled,
        mxcsr_mask=mxcsr_mask(),
        provenance="CPUID and XGETBV of this processor",
    )
