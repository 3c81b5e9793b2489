"""The processor of a recording, from what its machine.json says of CPUID."""

from __future__ import annotations

from typing import Any

from fpstate.arch import Cpu

_REGISTERS = ("eax", "ebx", "ecx", "edx")


def cpu_of(machine: dict[str, Any]) -> Cpu:
    """Return the processor that a machine.json describes; leaves that it lacks count as zeros."""
    processor = machine["processor"]
    leaves = {(0, 0): _leaf_0(processor["vendor"])}
    for key, value in processor.items():
        if not key.startswith("leaf_") or not isinstance(value, dict):
            continue
        leaf = int(key.removeprefix("leaf_"), 16)
        for subleaf, registers in value.items():
            if isinstance(registers, list):
                leaves[leaf, int(subleaf, 16)] = tuple(int(each, 16) for each in registers)
        if value.keys() & set(_REGISTERS):
            leaves[leaf, 0] = tuple(int(value.get(name, "0"), 16) for name in _REGISTERS)
    return Cpu.from_cpuid(
        leaves,
        name=processor.get("codename") or processor["brand"],
        enabled_xcr0=machine["xcr0"],
        mxcsr_mask=machine["mxcsr_mask"],
    )


def _leaf_0(vendor: str) -> tuple[int, int, int, int]:
    text = vendor.encode("latin-1").ljust(12, b"\0")
    ebx, edx, ecx = (int.from_bytes(text[start : start + 4], "little") for start in (0, 4, 8))
    return 0, ebx, ecx, edx
