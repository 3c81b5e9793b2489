"""CPUID tables of guests (struct kvm_cpuid2): leaf 0DH reduced, and entries read."""

from __future__ import annotations

from fpstate.engine.kvm.abi import CPUID_ENTRY, CPUID_HEADER

XSAVE_LEAF = 0xD


def with_components(table: bytearray, mask: int) -> bytearray:
    """Return a struct kvm_cpuid2 with CPUID.(0DH,0):EDX:EAX reduced to ``mask``."""
    count, _ = CPUID_HEADER.unpack_from(table)
    for index in range(count):
        at = CPUID_HEADER.size + index * CPUID_ENTRY.size
        function, subleaf, flags, eax, ebx, ecx, edx = CPUID_ENTRY.unpack_from(table, at)
        if (function, subleaf) == (XSAVE_LEAF, 0):
            values = (eax & mask, ebx, ecx, edx & mask >> 32)
            CPUID_ENTRY.pack_into(table, at, function, subleaf, flags, *values)
    return table


def components_of(table: bytearray) -> int:
    """Return CPUID.(0DH,0):EDX:EAX of a struct kvm_cpuid2."""
    eax, _, _, edx = leaf_of(table, XSAVE_LEAF, 0)
    return eax | edx << 32


def leaf_of(table: bytearray, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX, EDX of one entry of a struct kvm_cpuid2."""
    count, _ = CPUID_HEADER.unpack_from(table)
    for index in range(count):
        at = CPUID_HEADER.size + index * CPUID_ENTRY.size
        function, number, _, *registers = CPUID_ENTRY.unpack_from(table, at)
        if (function, number) == (leaf, subleaf):
            eax, ebx, ecx, edx = registers
            return eax, ebx, ecx, edx
    raise LookupError(f"no CPUID leaf {leaf:#x}.{subleaf}")
