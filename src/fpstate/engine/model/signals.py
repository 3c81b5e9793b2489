"""Signals in the kernel model: the frame that holds the state, the handler's initial state, the way back.

Source: Linux ``arch/x86/kernel/fpu/signal.c`` and ``fpu__clear_user_states`` in ``core.c``.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.arch.layout import Layout
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.errors import ImageError, VsoError
from fpstate.image import Image
from fpstate.image.consumer import INIT_PKRU, Consumer, Target
from fpstate.image.finding import Finding
from fpstate.image.rules import predict
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, MAGIC2_SIZE, SOFTWARE_AT, XSTATE_BV_AT
from fpstate.vso.fpstate import Fpstate

_PKRU: Final = mask_of(Component.PKRU)
_FXSAVE_SIZE: Final = 512


def deliver_signal(kernel: Kernel, core: Core) -> bytes:
    """Put the current task's user state into a frame on its stack; returns the frame's XSAVE image and magic word.

    The handler begins with initial user components and the PKRU of a new program; supervisor components stay.
    The frame is in the standard format and states x87, SSE and PKRU, whatever they are (Linux 6.12). Raises VsoError
    while a guest is swapped in: a vCPU's thread takes signals as a host.
    """
    task = kernel.running(core)
    if task.fpu.guest_active:
        raise VsoError(f"{task.name} has a guest's state in", help="leave the guest first")
    user = task.fpu.fpstate.user_xfeatures | LEGACY
    size = Layout.standard(kernel.cpu, user).size
    frame = bytearray(size + MAGIC2_SIZE)
    if kernel.cpu.has("XSAVE"):
        core.processor.xsave(memoryview(frame)[:size], user)
        stated = int.from_bytes(frame[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little") | LEGACY | user & _PKRU
        frame[XSTATE_BV_AT : XSTATE_BV_AT + 8] = stated.to_bytes(8, "little")
        FRAME.pack_into(frame, SOFTWARE_AT, MAGIC1, size + MAGIC2_SIZE, user, size)
        frame[size:] = MAGIC2.to_bytes(MAGIC2_SIZE, "little")
    else:
        frame = frame[:_FXSAVE_SIZE]
        core.processor.fxsave(frame)
    task.frames.append(bytes(frame))
    _clear_user_states(kernel, core)
    return bytes(frame)


def sigreturn(
    kernel: Kernel, core: Core, frame: bytes | None = None, *, address: int = 0, handled: bool = False
) -> None:
    """Load the innermost frame, or these bytes in its place; what it lacks becomes initial, PKRU too.

    Empty bytes stand for a frame without a pointer to its state: all is initial then, and PKRU is a new program's. A
    frame whose magic words or sizes the kernel does not believe is taken for an FXSAVE image, as is one that is
    larger than the task's own: a child of a handler that used tiles has those. Components that the frame was not
    made for become initial; supervisor components stay.

    ``address`` is where the frame's image lies. Where the bytes are refused, everything is initial, PKRU a new
    program's, and ImageError is raised. The task dies (SIGSEGV), unless it has ``handled`` the signal.
    """
    task = kernel.running(core)
    if not task.frames:
        raise VsoError(f"{task.name} is in no signal handler", help="deliver a signal first")
    innermost = task.frames.pop()
    data = innermost if frame is None else frame
    if not data:
        _clear_user_states(kernel, core)
        return
    state = task.fpu.fpstate
    verdict = predict(data, Consumer.SIGRETURN, target_of(kernel, state), address=address)
    if verdict.refusals:
        refusal = refusal_of(verdict.refusals[0])
        _clear_user_states(kernel, core)
        if not handled:
            kernel.kill(core, refusal)
        raise refusal
    if verdict.fx_only:
        asked = LEGACY
        core.processor.fxrstor(data[:_FXSAVE_SIZE])
    else:
        asked = FRAME.unpack_from(data, SOFTWARE_AT)[2] & state.user_xfeatures
        core.processor.xrstor(data, asked)
    if others := state.user_xfeatures & ~asked:
        core.registers.restore(_initial(kernel), others)


def _clear_user_states(kernel: Kernel, core: Core) -> None:
    """Make user components initial, and PKRU that of a new program (``fpu__clear_user_states``)."""
    core.registers.restore(_initial(kernel), kernel.config.user_max.features & ~_PKRU)
    core.registers.pkru = INIT_PKRU


def target_of(kernel: Kernel, state: Fpstate) -> Target:
    """Return what the rules are asked about for a task with this state."""
    return Target.from_cpu(kernel.cpu).with_(user_xfeatures=state.user_xfeatures, xfd=state.xfd)


def refusal_of(finding: Finding) -> ImageError:
    """Return the error for a finding that a consumer refuses."""
    return ImageError(
        f"{finding.id}: {finding.message}",
        offset=finding.offset,
        found=finding.found,
        expected=finding.expected,
        help=finding.help,
    )


def _initial(kernel: Kernel) -> Image:
    return Image.initial(kernel.config.kernel_layout(LEGACY))
