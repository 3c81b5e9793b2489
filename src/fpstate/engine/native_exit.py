"""How a native vCPU ended, told from what the core kept of its exit."""

from __future__ import annotations

import signal
import struct
from typing import TYPE_CHECKING

from fpstate.arch.component import LEGACY_SIZE, component_name, mask_text
from fpstate.arch.exception import request_help, restore_fault
from fpstate.engine.sigill import INSTRUCTION_BYTES, Fault, denied_component, lacks_tile_configuration
from fpstate.errors import ImageError, PermissionDenied, RestoreFault, VsoError
from fpstate.program.block import FINISHED, YIELD
from fpstate.vso.vcpu import Exit, ExitKind

if TYPE_CHECKING:
    from fpstate.engine.native import NativeVcpu


def rip_of(vcpu: NativeVcpu) -> int:
    """Return where a vCPU stands, from its program's base where that lies in its memory."""
    assert vcpu.memory is not None
    return vcpu.memory.relative(vcpu.core.rip)


def exit_of(vcpu: NativeVcpu) -> Exit | None:
    """Return how a vCPU ended that left its queue, or None where it goes on.

    Raises PermissionDenied where it used a component that it may not use.
    """
    from fpstate import _core

    core = vcpu.core
    assert vcpu.memory is not None
    kind = core.exit_kind
    if kind in (_core.EXIT_CALL, _core.EXIT_PORT):
        operation = core.registers[0] & 0xFFFFFFFF
        if operation == YIELD:
            return None
        return Exit(ExitKind.FINISHED if operation == FINISHED else ExitKind.FAILED, code=operation)
    if kind == _core.EXIT_PREEMPTED:
        return None
    if kind == _core.EXIT_EXPIRED:
        return Exit(ExitKind.EXPIRED, rip=rip_of(vcpu))
    if kind == _core.EXIT_SEGMENT:
        return Exit(ExitKind.REFUSED, rip=rip_of(vcpu), error=_other_segment())
    fault = Fault(*core.fault)
    if kind == _core.EXIT_REFUSED:
        return Exit(ExitKind.REFUSED, rip=rip_of(vcpu), error=_refusal(vcpu, fault))
    _check_permission(vcpu, fault)
    return Exit(
        ExitKind.FAULT,
        signal=signal.Signals(fault.signal).name,
        si_code=fault.si_code,
        vector=fault.vector,
        error_code=fault.error_code,
        address=vcpu.memory.relative(fault.address),
        rip=rip_of(vcpu),
        note=_note(vcpu, fault),
    )


def _other_segment() -> VsoError:
    return VsoError(
        "it left 64-bit code by a far transfer, and was preempted there: no native vCPU keeps a code segment",
        help="a KVM guest may: --engine kvm",
    )


def _refusal(vcpu: NativeVcpu, fault: Fault) -> RestoreFault:
    """Say why XRSTOR did not take what lies in a vCPU's buffer."""
    from fpstate import _core

    buffer = vcpu.vso.buffer
    if buffer is None:  # the initial image, which is the core's own
        return restore_fault(fault.signal, fault.si_code, 0, 0, 0)
    view, reason, reason_at = buffer.view, "", -1
    try:
        _core.check_image(view)
    except ImageError as error:
        reason, reason_at = str(error), -1 if error.offset is None else error.offset
    xstate_bv, xcomp_bv = struct.unpack_from("<QQ", view, LEGACY_SIZE)
    start = buffer.slab.address + buffer.slot * buffer.slab.stride
    return restore_fault(
        fault.signal, fault.si_code, fault.address - start, xstate_bv, xcomp_bv, reason, reason_at
    )


def _check_permission(vcpu: NativeVcpu, fault: Fault) -> None:
    """Raise PermissionDenied where the kernel stopped a guest at a component that it may not use."""
    from fpstate import _core

    found = _core.features()
    kernel = found["managed_mask"] if found["permission"] is None else found["permission"]
    component = denied_component(fault, found["dynamic_mask"], vcpu.vso.permitted & kernel)
    if component is None:
        return
    vcpu.engine.manager.check_use(vcpu.vso, 1 << component)
    raise PermissionDenied(
        component,
        f"{component_name(component)} was used, and the kernel permits this process {mask_text(kernel)}",
        help=request_help(component),
    )


def _note(vcpu: NativeVcpu, fault: Fault) -> str:
    """Say what else is known of a fault."""
    assert vcpu.memory is not None
    memory = vcpu.memory.memory
    at = vcpu.core.rip - memory.address
    code = memory.read(at, min(INSTRUCTION_BYTES, memory.size - at)) if 0 <= at < memory.size else b""
    if lacks_tile_configuration(fault, code, vcpu.core.in_use, vcpu.engine.managed):
        return "#UD, a tile instruction without a tile configuration (LDTILECFG)"
    return ""
