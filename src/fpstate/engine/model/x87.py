"""x87 and MMX instructions, as far as tracking, exceptions and the pointers to the last of them need them.

Sources: SDM Vol. 1, 8.1, 8.5.1.1 (stack faults), 9.2 (MMX), Vol. 2 for each instruction; which of them change FOP, FIP
and FDP: measured on Emerald Rapids.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fpstate.arch.component import Component, mask_of
from fpstate.engine.model.contents import SLOTS, X87_SIZE, normalised_control, pending, with_control
from fpstate.engine.model.fault import X87_ERROR, fault
from fpstate.engine.model.machine import Machine
from fpstate.image.control import FCW_INIT

X87: Final = int(Component.X87)

_SLOT: Final = 16
_FLAGS: Final = 0x80FF
_TOP: Final = 0x3800
_ONE: Final = 0x0800
_STACK_FAULT: Final = 0x0041
_INVALID: Final = 0x0001
_C1: Final = 0x0200
_INDEFINITE: Final = bytes.fromhex("000000000000 00c0ffff 000000000000")


class Place(NamedTuple):
    """Where an x87 instruction is, where its operand in memory is, the 11 bits of its opcode (FOP), and CS and DS."""

    fip: int = 0
    fdp: int = 0
    opcode: int = 0
    code: int = 0
    data: int = 0


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


def move_mmx(machine: Machine, index: int, data: bytes) -> None:
    """MOVQ mm, m64: TOP becomes 0, every tag valid, the exponent all ones; the other registers keep their place."""
    _wait(machine)
    value = machine.file.values[X87]
    stack = _physical(value)
    start = index * _SLOT
    stack = stack[:start] + data + b"\xff\xff" + bytes(6) + stack[start + _SLOT :]
    machine.file.put(X87, _with_top_0(value, b"\xff") + stack)


def fld80(machine: Machine, data: bytes, place: Place) -> None:
    """FLD m80: pushes 10 bytes; #MF while an unmasked exception is pending. A full stack is a stack fault."""
    _wait(machine)
    value = machine.file.values[X87]
    status, tags = (value[2] | value[3] << 8) & ~_C1, value[4]
    top = ((status & _TOP) - _ONE & _TOP) >> 11
    stack = value[SLOTS:X87_SIZE]
    if tags >> top & 1:
        status |= _STACK_FAULT | _C1
        data = _INDEFINITE
    if not status & ~value[0] & _INVALID:
        stack = data[:10] + bytes(6) + stack[: X87_SIZE - SLOTS - _SLOT]
        status = status & ~_TOP | top << 11
        tags |= 1 << top
    _execute(machine, value, status, tags, stack, place, operand=True)


def fstp0(machine: Machine, place: Place) -> None:
    """FSTP ST(0): pops; #MF while an unmasked exception is pending. An empty stack is a stack fault."""
    _wait(machine)
    value = machine.file.values[X87]
    status, tags = (value[2] | value[3] << 8) & ~_C1, value[4]
    top = (status & _TOP) >> 11
    stack = value[SLOTS:X87_SIZE]
    if not tags >> top & 1:
        status |= _STACK_FAULT
        stack = _INDEFINITE + stack[_SLOT:]
    if not status & ~value[0] & _INVALID:
        stack = stack[_SLOT:] + stack[:_SLOT]
        status = status & ~_TOP | (status + _ONE & _TOP)
        tags &= ~(1 << top)
    else:
        stack = value[SLOTS:X87_SIZE]
    _execute(machine, value, status, tags, stack, place, operand=False)


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


def _execute(
    machine: Machine, value: bytes, status: int, tags: int, stack: bytes, place: Place, *, operand: bool
) -> None:
    """Finish an instruction that is no control instruction: its FSW, tags, stack, and the pointers to it."""
    pointers = place.fip.to_bytes(8, "little"), place.fdp.to_bytes(8, "little")
    file = machine.file
    value = with_control(value[:4] + bytes([tags]) + value[5:SLOTS] + stack, status=status)
    told = not machine.behaviour.pointers_on_exception or pending(value)
    opcode = place.opcode.to_bytes(2, "little") if told else value[6:8]
    data = pointers[1] if told and operand else value[16:24]
    file.selectors = (place.code, place.data if operand else file.selectors[1])
    file.put(X87, value[:6] + opcode + pointers[0] + data + value[24:])
