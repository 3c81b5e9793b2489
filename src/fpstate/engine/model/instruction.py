"""Instructions on vectors, masks, MXCSR and PKRU, as far as tracking and exceptions need them.

Sources: SDM Vol. 2 for each instruction; SDM Vol. 1, 14.8 and 15.5 (what a vector instruction does to the upper
bits). What each puts in use on processors that track writes: measured on Emerald Rapids.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import Component, mask_of
from fpstate.engine.model.fault import UNDEFINED, fault, refusal
from fpstate.engine.model.machine import Machine

SSE: Final = int(Component.SSE)
AVX: Final = int(Component.AVX)
OPMASK: Final = int(Component.OPMASK)
ZMM_HI256: Final = int(Component.ZMM_HI256)
HI16_ZMM: Final = int(Component.HI16_ZMM)
PKRU: Final = int(Component.PKRU)


def ldmxcsr(machine: Machine, mxcsr: int) -> None:
    """LDMXCSR: raises #GP for reserved bits."""
    machine.use(mask_of(SSE))
    check_mxcsr(machine, mxcsr)
    machine.file.mxcsr = mxcsr
    if not machine.file.tracks_values:
        machine.file.lower |= mask_of(SSE)
        machine.file.upper |= mask_of(SSE)
        machine.file.modified |= mask_of(SSE)


def check_mxcsr(machine: Machine, mxcsr: int) -> None:
    """Raise #GP for bits of MXCSR that this processor does not have."""
    if excess := mxcsr & ~machine.cpu.mxcsr_mask:
        raise refusal("XS017", f"MXCSR {mxcsr:#x} has reserved bits {excess:#x}")


def move_xmm(machine: Machine, index: int, data: bytes) -> None:
    """MOVUPS xmm, m128: the upper bits stay."""
    machine.use(mask_of(SSE))
    _patch(machine, SSE, index, data)


def move_vector(machine: Machine, index: int, data: bytes) -> None:
    """VMOVUPS with 16, 32 or 64 bytes: the upper bits become zeros. Index 16 to 31, and 64 bytes, need AVX-512."""
    wide = index >= 16 or len(data) > 32
    needed = (OPMASK, ZMM_HI256, HI16_ZMM) if wide else ()
    machine.use(mask_of(SSE, AVX, *needed))
    if index >= 16:
        _patch(machine, HI16_ZMM, index - 16, data.ljust(64, b"\0"), upper=True)
        return
    _patch(machine, SSE, index, data[:16])
    for component, first, last in ((AVX, 16, 32), (ZMM_HI256, 32, 64)):
        if len(data) >= last:
            _patch(machine, component, index, data[first:last])
        elif component in machine.file.values:
            machine.file.clear(component, (last - first) * index, last - first)


def zero_vector(machine: Machine, index: int) -> None:
    """VPXOR of a register with itself, which processors that track values recognise. Index 16 to 31: AVX-512."""
    machine.use(mask_of(SSE, AVX, *((OPMASK, ZMM_HI256, HI16_ZMM) if index >= 16 else ())))
    file = machine.file
    named, size = (HI16_ZMM, 64) if index >= 16 else (SSE, 16)
    if file.tracks_values:
        file.clear(named, size * (index % 16), size)
    else:
        _patch(machine, named, index % 16, bytes(size), upper=index > 7)
    if index < 16:
        for component, size in ((AVX, 16), (ZMM_HI256, 32)):
            if component in file.values:
                file.clear(component, size * index, size)


def kmov(machine: Machine, index: int, data: bytes) -> None:
    """KMOVQ k, m64."""
    machine.use(mask_of(SSE, AVX, OPMASK, ZMM_HI256, HI16_ZMM))
    _patch(machine, OPMASK, index, data)


def vzeroupper(machine: Machine) -> None:
    """VZEROUPPER: of registers 0 to 15 nothing but XMM stays."""
    machine.use(mask_of(SSE, AVX))
    machine.file.initialise(AVX)
    if ZMM_HI256 in machine.file.values:
        machine.file.initialise(ZMM_HI256)


def vzeroall(machine: Machine) -> None:
    """VZEROALL: registers 0 to 15 become zeros."""
    vzeroupper(machine)
    machine.file.initialise(SSE)


def wrpkru(machine: Machine, value: int) -> None:
    """WRPKRU, with ECX and EDX 0: raises #UD where the processor, or XCR0, has no protection keys."""
    _need_keys(machine)
    machine.file.put(PKRU, value.to_bytes(len(machine.file.values[PKRU]), "little"))


def rdpkru(machine: Machine) -> int:
    """RDPKRU, with ECX 0; raises #UD likewise."""
    _need_keys(machine)
    return int.from_bytes(machine.file.values[PKRU][:4], "little")


def _need_keys(machine: Machine) -> None:
    if not machine.cpu.has("PKU") or not machine.xcr0 >> PKRU & 1:
        raise fault(UNDEFINED, "protection keys are not enabled", "SDM Vol. 2, RDPKRU and WRPKRU")


def _patch(machine: Machine, component: int, index: int, data: bytes, *, upper: bool | None = None) -> None:
    """Write a register of a component; those from 8 on exist in 64-bit mode alone, but for masks."""
    value, start = machine.file.values[component], index * len(data)
    value = value[:start] + data + value[start + len(data) :]
    machine.file.write(component, value, upper=index > 7 if upper is None else upper)
