"""KVM's buffers: ``struct kvm_xsave`` (4096 bytes, or more with KVM_GET_XSAVE2) and ``struct kvm_fpu`` (416).

Sources: KVM API 4.22, 4.42, 4.134; Linux ``kvm_vcpu_ioctl_x86_get_xsave`` and ``kvm_arch_vcpu_ioctl_get_fpu`` in
``arch/x86/kvm/x86.c``; ``arch/x86/include/uapi/asm/kvm.h``.
"""

from __future__ import annotations

import struct
from typing import Final

from fpstate.arch.component import LEGACY_SIZE, MIN_SIZE, Component, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError
from fpstate.image import Image
from fpstate.image.control import MXCSR_INIT
from fpstate.image.finding import Finding, Severity
from fpstate.image.legacy import from_fxsave
from fpstate.image.subject import MXCSR_AT, SOFTWARE_AT, XSTATE_BV_AT
from fpstate.source.known_layout import padded_layout, plausible_xcr0, stated_layout, within
from fpstate.source.thread import ThreadState

KVM_XSAVE_SIZE: Final = 4096
KVM_FPU_SIZE: Final = 416

_REGISTERS: Final = slice(0, 128)
_CONTROL: Final = struct.Struct("<HHBxHQQ")
"""fcw, fsw, the abridged tag word, last_opcode, last_ip and last_dp, as FXSAVE64 has them too."""
_CONTROL_AT: Final = 128
_XMM: Final = slice(152, 408)
_FPU_MXCSR: Final = slice(408, 412)
_FX_STACK: Final = slice(32, 160)
_FX_XMM: Final = slice(160, 416)


def read_kvm_xsave(data: bytes, cpu: Cpu | None = None) -> ThreadState:
    """Return the state in a KVM_GET_XSAVE or KVM_GET_XSAVE2 buffer, which has the host's standard layout.

    Bytes 464 to 471 are the mask of what the host has, not the guest's XCR0: they choose the layout and are no
    part of the state. Components that end beyond the buffer are those that KVM gave the guest no permission for
    (TILEDATA, and TILECFG with it): they are left out. Raises LayoutError where ``cpu`` lacks components of the
    mask, AmbiguousLayout where no processor is named and known ones differ, ImageError for fewer than 4096 bytes
    and where XSTATE_BV names what ends beyond them.
    """
    if len(data) < KVM_XSAVE_SIZE:
        raise ImageError(
            f"{len(data)} bytes, but KVM_GET_XSAVE gives {KVM_XSAVE_SIZE}",
            offset=len(data),
            found=len(data),
            expected=KVM_XSAVE_SIZE,
        )
    stated = int.from_bytes(data[SOFTWARE_AT : SOFTWARE_AT + 8], "little")
    if stated and not plausible_xcr0(stated):
        raise ImageError(
            f"the host's mask at byte {SOFTWARE_AT} is {stated:#x}, which no processor can have",
            offset=SOFTWARE_AT,
            found=stated,
        )
    layout = _layout(stated, len(data), cpu)
    xstate_bv = int.from_bytes(data[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little")
    if cut := xstate_bv & stated & ~layout.mask:
        raise ImageError(
            f"XSTATE_BV names {mask_text(cut)}, which ends beyond the {len(data)} bytes",
            offset=XSTATE_BV_AT,
            found=xstate_bv,
            expected=xstate_bv & layout.mask,
            help="KVM_GET_XSAVE2 gives as many bytes as KVM_CAP_XSAVE2 says",
        )
    image = Image(data[: layout.size], layout, "inferred" if cpu is None else "given")
    return ThreadState(None, image, findings=(_host_mask(stated, stated & ~layout.mask),))


def read_kvm_fpu(data: bytes) -> ThreadState:
    """Return the state in a KVM_GET_FPU buffer: x87 and XMM; raises ImageError for a length other than 416.

    MXCSR is not known: KVM neither writes that field nor reads it. The image has what the field says, or
    1F80H where that is 0, and a finding. Nor is it known whether the registers count: there is no XSTATE_BV.
    """
    if len(data) != KVM_FPU_SIZE:
        raise ImageError(
            f"{len(data)} bytes, but struct kvm_fpu has {KVM_FPU_SIZE}",
            offset=min(len(data), KVM_FPU_SIZE),
            found=len(data),
            expected=KVM_FPU_SIZE,
        )
    area = bytearray(LEGACY_SIZE)
    _CONTROL.pack_into(area, 0, *_CONTROL.unpack_from(data, _CONTROL_AT))
    area[_FX_STACK], area[_FX_XMM] = data[_REGISTERS], data[_XMM]
    stated = int.from_bytes(data[_FPU_MXCSR], "little")
    area[MXCSR_AT : MXCSR_AT + 4] = (stated or MXCSR_INIT).to_bytes(4, "little")
    return ThreadState(None, from_fxsave(area), findings=(_no_mxcsr(stated), _no_bitmap()))


def _layout(stated: int, length: int, cpu: Cpu | None) -> Layout:
    if cpu is None:
        return padded_layout(stated, length)
    layout = stated_layout(cpu, stated or cpu.xcr0)
    if stated:
        return within(layout, length)
    if layout.size > length:
        raise ImageError(
            f"{length} bytes, but {mask_text(layout.mask)} of {cpu.name} needs {layout.size}",
            offset=length,
            found=length,
            expected=layout.size,
            help="KVM_GET_XSAVE2 gives as many bytes as KVM_CAP_XSAVE2 says",
        )
    return layout


def _host_mask(stated: int, withheld: int) -> Finding:
    message = (
        "the software bytes do not state the host's mask: whoever wrote the buffer was not KVM_GET_XSAVE"
    )
    if stated:
        message = f"the mask {stated:#x} in the software bytes is the host's, not the guest's XCR0"
    if withheld:
        message += (
            f"; the buffer has no room for {mask_text(withheld)}, which this KVM did not give the guest"
        )
    return Finding(
        "SRC010",
        Severity.NOTE,
        message,
        offset=SOFTWARE_AT,
        found=stated,
        source="Linux __copy_xstate_to_uabi_buf",
        help="KVM_GET_XCRS gives the guest's XCR0",
    )


def _no_bitmap() -> Finding:
    return Finding(
        "SRC016",
        Severity.NOTE,
        "KVM_GET_FPU does not look at XSTATE_BV: where x87 or SSE was initial, these are leftovers",
        source="Linux kvm_arch_vcpu_ioctl_get_fpu",
        help="KVM_GET_XSAVE has XSTATE_BV",
    )


def _no_mxcsr(stated: int) -> Finding:
    taken = "is taken for what it says" if stated else "and so shown as 0x1f80"
    return Finding(
        "SRC011",
        Severity.WARNING,
        f"KVM_GET_FPU does not transfer MXCSR: the field is {stated:#x} {taken}; what the vCPU had is not known",
        component=Component.SSE,
        register="mxcsr",
        offset=_FPU_MXCSR.start,
        found=stated,
        source="Linux kvm_arch_vcpu_ioctl_get_fpu",
        help="KVM_GET_XSAVE transfers it",
    )


assert _CONTROL_AT + _CONTROL.size == _XMM.start
assert MIN_SIZE < KVM_XSAVE_SIZE
