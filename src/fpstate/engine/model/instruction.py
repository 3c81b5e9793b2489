"""Instructions that change registers as a whole, as far as tracking and exceptions need them.

Sources: SDM Vol. 1, 8.1 and 9.2 (x87, MMX); Vol. 2 for each instruction; SDM Vol. 1, 14.8 and 15.5 (what a
vector instruction does to the upper bits); chapter 18 (AMX).
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import Component, mask_of
from fpstate.engine.model.contents import SLOTS, X87_SIZE, normalised_control, pending, with_control
from fpstate.engine.model.fault import PROTECTION, X87_ERROR, fault, refusal
from fpstate.engine.model.machine import Machine
from fpstate.image.control import FCW_INIT
from fpstate.image.tile import configuration_problem

X87: Final = int(Component.X87)
SSE: Final = int(Component.SSE)
AVX: Final = int(Component.AVX)
OPMASK: Final = int(Component.OPMASK)
ZMM_HI256: Final = int(Component.ZMM_HI256)
HI16_ZMM: Final = int(Component.HI16_ZMM)
TILECFG: Final = int(Component.TILECFG)
TILEDATA: Final = int(Component.TILEDATA)

_SLOT: Final = 16
_FLAGS: Final = 0x80FF
_TOP: Final = 0x3800


def fninit(machine: Machine) -> None:
    """FNINIT: control, status and tags initial, pointers zero; the registers' contents stay."""
    machine.use(mask_of(X87))
    stack = _physical(machine.file.values[X87])
    machine.file.selectors = (0, 0)
    machine.file.put(X87, FCW_INIT.to_bytes(2, "little") + bytes(SLOTS - 2) + stack)


def fnclex(machine: Machine) -> None:
    """FNCLEX: no exception is flagged."""
    machine.use(mask_of(X87))
    value = machine.file.values[X87]
    machine.file.put(X87, with_control(value, status=(value[2] | value[3] << 8) & ~_FLAGS))


def fldcw(machine: Machine, control: int) -> None:
    """FLDCW: raises #MF while an unmasked exception is pending, else sets FCW."""
    _wait(machine)
    machine.file.put(X87, with_control(machine.file.values[X87], control=normalised_control(control)))


def emms(machine: Machine) -> None:
    """EMMS: every tag empty, TOP 0 (SDM Vol. 3, 12.2)."""
    _wait(machine)
    value = machine.file.values[X87]
    machine.file.put(X87, _with_top_0(value, b"\0") + _physical(value))


def ldmxcsr(machine: Machine, mxcsr: int) -> None:
    """LDMXCSR: raises #GP for reserved bits."""
    machine.use(mask_of(SSE))
    check_mxcsr(machine, mxcsr)
    machine.file.mxcsr = mxcsr


def check_mxcsr(machine: Machine, mxcsr: int) -> None:
    """Raise #GP for bits of MXCSR that this processor does not have."""
    if excess := mxcsr & ~machine.cpu.mxcsr_mask:
        raise refusal("XS017", f"MXCSR {mxcsr:#x} has reserved bits {excess:#x}")


def move_mmx(machine: Machine, index: int, data: bytes) -> None:
    """MOVQ mm, m64: TOP becomes 0, every tag valid, the exponent all ones; the other registers keep their place."""
    _wait(machine)
    value = machine.file.values[X87]
    stack = _physical(value)
    start = index * _SLOT
    stack = stack[:start] + data + b"\xff\xff" + bytes(6) + stack[start + _SLOT :]
    machine.file.put(X87, _with_top_0(value, b"\xff") + stack)


def move_xmm(machine: Machine, index: int, data: bytes) -> None:
    """MOVUPS xmm, m128: the upper bits stay."""
    machine.use(mask_of(SSE))
    _patch(machine, SSE, _SLOT * index, data)


def move_vector(machine: Machine, index: int, data: bytes) -> None:
    """VMOVUPS with 16, 32 or 64 bytes: the upper bits become zeros. Index 16 to 31, and 64 bytes, need AVX-512."""
    wide = index >= 16 or len(data) > 32
    needed = (OPMASK, ZMM_HI256, HI16_ZMM) if wide else ()
    machine.use(mask_of(SSE, AVX, *needed))
    if index >= 16:
        _patch(machine, HI16_ZMM, 64 * (index - 16), data.ljust(64, b"\0"))
        return
    _patch(machine, SSE, 16 * index, data[:16])
    for component, first, last in ((AVX, 16, 32), (ZMM_HI256, 32, 64)):
        start, size = (last - first) * index, last - first
        if len(data) >= last:
            _patch(machine, component, start, data[first:last])
        elif component in machine.file.values:
            _clear(machine, component, start, size)


def zero_vector(machine: Machine, index: int) -> None:
    """VPXOR of a register with itself, which processors that track values recognise. Index 16 to 31: AVX-512."""
    machine.use(mask_of(SSE, AVX, *((OPMASK, ZMM_HI256, HI16_ZMM) if index >= 16 else ())))
    if index >= 16:
        _clear(machine, HI16_ZMM, 64 * (index - 16), 64)
        return
    for component, size in ((SSE, 16), (AVX, 16), (ZMM_HI256, 32)):
        if component in machine.file.values:
            _clear(machine, component, size * index, size)


def kmov(machine: Machine, index: int, data: bytes) -> None:
    """KMOVQ k, m64."""
    machine.use(mask_of(SSE, AVX, OPMASK, ZMM_HI256, HI16_ZMM))
    _patch(machine, OPMASK, 8 * index, data)


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


def ldtilecfg(machine: Machine, data: bytes) -> None:
    """LDTILECFG with 64 bytes: palette 0 initialises, palette 1 configures and zeroes; raises #GP for the rest."""
    machine.use(mask_of(TILECFG))
    if problem := configuration_problem(data):
        raise fault(PROTECTION, f"LDTILECFG: {problem}", "SDM Vol. 2, LDTILECFG")
    tilerelease(machine)
    if data[0]:
        machine.file.put(TILECFG, data)


def tilerelease(machine: Machine) -> None:
    """TILERELEASE: configuration and tiles become initial."""
    machine.use(mask_of(TILECFG))
    machine.file.initialise(TILECFG)
    machine.file.initialise(TILEDATA)


def _physical(value: bytes) -> bytes:
    """The register stack in the order of physical registers, in which it is saved while TOP is 0."""
    shift = -(value[3] >> 3) % 8 * _SLOT
    return value[SLOTS + shift : X87_SIZE] + value[SLOTS : SLOTS + shift]


def _with_top_0(value: bytes, tags: bytes) -> bytes:
    """The x87 fields with other tags and a TOP of 0."""
    status = (value[2] | value[3] << 8) & ~_TOP
    return value[:2] + status.to_bytes(2, "little") + tags + value[5:SLOTS]


def _wait(machine: Machine) -> None:
    machine.use(mask_of(X87))
    if pending(machine.file.values[X87]):
        raise fault(X87_ERROR, "an unmasked x87 exception is pending", "SDM Vol. 1, 8.7")


def _patch(machine: Machine, component: int, offset: int, data: bytes) -> None:
    value = machine.file.values[component]
    machine.file.write(component, value[:offset] + data + value[offset + len(data) :])


def _clear(machine: Machine, component: int, offset: int, size: int) -> None:
    """Zero the upper part of a register; a component that is zeros already stays as unused as it was."""
    file = machine.file
    value = file.values[component]
    if any(value[offset : offset + size]):
        file.put(component, value[:offset] + bytes(size) + value[offset + size :])
