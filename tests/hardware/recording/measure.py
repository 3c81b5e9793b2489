"""What CPUID does not say of a processor and its kernel, asked of them."""

from __future__ import annotations

from fpstate.engine.kvm.device import Device
from fpstate.errors import UnsupportedHere
from fpstate.image.control import MXCSR_INIT

from .child import Child
from .inputs import ALL

_TELLING = 0x0100_8000_0000_0001
"""A pointer that says where it was sign-extended from."""
_WIDTHS = {_TELLING: 64, _TELLING | 0xFF << 56: 57, (_TELLING | 0xFFFF << 48) & ALL: 48}
_POINTERS = {"fip": 8, "fdp": 16}


def pointer_widths(child: Child) -> dict[str, int]:
    """Bits that x87's pointers have; what is above them repeats the highest (0: none of 48, 57 and 64).

    An exception is pending, since some processors keep no pointers without one.
    """
    image = bytearray(512)
    image[0:4] = bytes.fromhex("7e030100")  # an invalid operation is flagged, and not masked
    image[24:28] = MXCSR_INIT.to_bytes(4, "little")
    for at in _POINTERS.values():
        image[at : at + 8] = _TELLING.to_bytes(8, "little")
    saved = child.reserve(512)
    child.run(
        [child.step("fxrstor64", child.place(image)), child.step("fxsave64", saved), child.step("fninit")]
    )
    data = child.read(saved, 512)
    found = {name: int.from_bytes(data[at : at + 8], "little") for name, at in _POINTERS.items()}
    child.release()
    return {name: _WIDTHS.get(value, 0) for name, value in found.items()}


def runs_32_bit_code(child: Child) -> bool:
    """Whether programs can go on outside 64-bit mode."""
    fine = not child.run([child.step("fxsave@32", child.reserve(512))])[0].signal
    child.release()
    return fine


def has_i386_calls(child: Child) -> bool:
    """Whether INT 80H serves the i386 table: a return from a signal without an FP part succeeds."""
    return not child.run([child.step("sigreturn32")])[0].signal


def kvm_here() -> str:
    """What KVM is here, in a line of machine.json."""
    try:
        with Device() as device:
            supported = device.supported_xcr0
            told = "unknown" if supported is None else f"{supported:#x}"
            return f"KVM_CAP_XSAVE2 {device.xsave_size}; KVM_X86_XCOMP_GUEST_SUPP {told}"
    except UnsupportedHere as error:
        return f"none: {error}"
