"""What the caller sees of a refusal where there are several reasons: which of them comes first.

Measured on Emerald Rapids and Zen 4 with images that broke several rules at once; the kernel's order is that of
``ptrace_regset``, ``xstateregs_set`` and ``copy_uabi_to_xstate``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from fpstate.image.consumer import FRAMES, INSTRUCTIONS, Consumer, Target

_HEADER: Final = ("XS007", "XS008", "XS009", "XS012", "XS013", "XS014", "XS015", "XS016")
_REGISTERS: Final = ("XS018", "XS017", "XS019")
_HEADER_FIRST: Final = ("XS006", "XS001", *_HEADER, "XS002", *_REGISTERS)
_FORMAT: Final = ("XS013", "XS014")
_MEMORY_FIRST: Final = ("XS006", "XS001", *_FORMAT, "XS002", *_HEADER, *_REGISTERS)
_FAULTS: Final[Mapping[str, str]] = MappingProxyType({"XS001": "#PF", "XS002": "#PF", "XS018": "#NM"})
_EFAULT: Final[Mapping[Consumer, tuple[str, ...]]] = MappingProxyType(
    {Consumer.PTRACE: ("XS005",), Consumer.KVM: ("XS001", "XS002"), Consumer.KVM_FPU: ("XS001",)}
)


def first_reason(ids: Iterable[str], target: Target) -> str:
    """Return which of these refusals an XRSTOR or XRSTORS raises its fault for."""
    order = _HEADER_FIRST if target.header_first else _MEMORY_FIRST
    return min(ids, key=order.index)


def answer_of(consumer: Consumer, ids: list[str], target: Target) -> str:
    """Return what the caller sees: a fault's mnemonic, a signal or an errno. ``ids`` are those of the refusals."""
    if consumer in INSTRUCTIONS:
        return _FAULTS.get(first_reason(ids, target), "#GP")
    if consumer in FRAMES:
        return "SIGSEGV"
    return "EFAULT" if ids[0] in _EFAULT.get(consumer, ()) else "EINVAL"
