"""A processor back into CPUID leaves: the way to keep one in a file and read it with ``Cpu.from_cpuid``."""

from __future__ import annotations

from typing import Final

from fpstate.arch.cpu import FEATURE_BITS, Cpu, Leaves

_EAX, _EBX, _ECX, _EDX = range(4)
_MAIN: Final = (0xD, 0)
_EXTENDED: Final = (0xD, 1)
_LOW: Final = (1 << 32) - 1


def leaves_of(cpu: Cpu) -> Leaves:
    """Return leaves from which ``Cpu.from_cpuid`` makes the same processor, in ascending order.

    Only what a Cpu keeps is in them: vendor, signature, the flags of ``FEATURE_BITS`` and leaf 0DH. All other
    bits are 0, so they are no answer to what CPUID said.
    """
    registers: dict[tuple[int, int], list[int]] = {}

    def put(key: tuple[int, int], index: int, value: int) -> None:
        registers.setdefault(key, [0, 0, 0, 0])[index] |= value

    vendor = cpu.vendor.encode("latin-1").ljust(12, b"\0")
    for index, start in ((_EBX, 0), (_EDX, 4), (_ECX, 8)):
        put((0, 0), index, int.from_bytes(vendor[start : start + 4], "little"))
    put((1, 0), _EAX, _signature(cpu))
    for name in cpu.features:
        leaf, subleaf, index, bit = FEATURE_BITS[name]
        put((leaf, subleaf), index, 1 << bit)
    for index, value in (
        *((_EAX, cpu.xcr0 & _LOW), (_EDX, cpu.xcr0 >> 32)),
        *((_EBX, cpu.enabled_size), (_ECX, cpu.standard_size)),
    ):
        put(_MAIN, index, value)
    for index, value in ((_EBX, cpu.compacted_size), (_ECX, cpu.xss & _LOW), (_EDX, cpu.xss >> 32)):
        put(_EXTENDED, index, value)
    for number, place in cpu.geometry.items():
        put((0xD, number), _EAX, place.size)
        put((0xD, number), _EBX, place.offset)
        put((0xD, number), _ECX, place.supervisor | place.aligned << 1 | place.xfd << 2)
    return {key: (each[0], each[1], each[2], each[3]) for key, each in sorted(registers.items())}


def _signature(cpu: Cpu) -> int:
    """Display family and model, put together as in CPUID.1:EAX (SDM Vol. 2, CPUID page)."""
    family, extended = (15, cpu.family - 15) if cpu.family >= 15 else (cpu.family, 0)
    return extended << 20 | cpu.model >> 4 << 16 | family << 8 | (cpu.model & 15) << 4 | cpu.stepping
