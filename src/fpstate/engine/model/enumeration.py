"""CPUID leaf 0DH as a modelled processor answers it: some of it changes with XCR0 and IA32_XSS.

Source: SDM Vol. 1, 13.2, and Vol. 2, CPUID.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.layout import Layout
from fpstate.engine.model.machine import Machine

_LOW: Final = (1 << 32) - 1
_FEATURES: Final = ("XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XFD")


def leaf_0d(machine: Machine, subleaf: int) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX and EDX; zeros for a sub-leaf that is not there."""
    cpu = machine.cpu
    if not cpu.has("XSAVE"):
        return 0, 0, 0, 0
    if subleaf == 0:
        enabled, supported = (Layout.standard(cpu, mask).size for mask in (machine.xcr0, cpu.xcr0))
        return cpu.xcr0 & _LOW, enabled, supported, cpu.xcr0 >> 32
    if subleaf == 1:
        features = sum(1 << bit for bit, feature in enumerate(_FEATURES) if cpu.has(feature))
        compacted = cpu.has("XSAVEC") or cpu.has("XSAVES")
        size = Layout.compacted(cpu, machine.xcr0 | machine.xss).size if compacted else 0
        return features, size, cpu.xss & _LOW, cpu.xss >> 32
    geometry = cpu.geometry.get(subleaf)
    if geometry is None:
        return 0, 0, 0, 0
    flags = geometry.supervisor | geometry.aligned << 1 | geometry.xfd << 2
    return geometry.size, geometry.offset, flags, 0
