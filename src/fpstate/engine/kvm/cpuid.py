"""What a struct kvm_cpuid2 says: a guest's CPUID, as KVM takes and gives it."""

from __future__ import annotations

from fpstate.engine.kvm.abi import CPUID_ENTRY, CPUID_HEADER
from fpstate.engine.kvm.context import FSGSBASE, OSXSAVE, PKE

_XSAVE, _PKU = 1 << 26, 1 << 3
_ZEROS = (0, 0, 0, 0)


def leaf(table: bytearray, function: int, index: int) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX and EDX of a leaf; zeros where the table does not have it."""
    for found, subleaf, _, *registers in CPUID_ENTRY.iter_unpack(bytes(table[CPUID_HEADER.size :])):
        if (found, subleaf) == (function, index):
            eax, ebx, ecx, edx = registers
            return eax, ebx, ecx, edx
    return _ZEROS


def cr4_bits(table: bytearray) -> int:
    """Return the optional bits of CR4 that KVM_SET_SREGS takes with this CPUID."""
    _, _, ecx, _ = leaf(table, 1, 0)
    _, ebx, _, _ = leaf(table, 7, 0)
    return (OSXSAVE if ecx & _XSAVE else 0) | (FSGSBASE if ebx & 1 else 0)


def protection_keys(table: bytearray) -> int:
    """Return CR4.PKE where KVM_SET_SREGS takes it with this CPUID, else 0."""
    _, _, ecx, _ = leaf(table, 7, 0)
    return PKE if ecx & _PKU else 0
