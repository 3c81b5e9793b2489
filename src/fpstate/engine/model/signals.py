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
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Finding
from fpstate.image.rules import predict
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, MAGIC2_SIZE, SOFTWARE_AT, XSTATE_BV_AT
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.task import INIT_PKRU

_PKRU: Final = mask_of(Component.PKRU)
_FXSAVE_SIZE: Final = 512


def deliver_signal(kernel: Kernel, core: Core) -> bytes:
    """Put the current task's user state into a frame on its stack; returns the frame's XSAVE image and magic word.

    The handler begins with initial user components and the PKRU of a new program; supervisor components stay.
    The frame is in the standard format and states x87, SSE and PKRU, whatever they are (Linux 6.12). Raises VsoError
    while a guest is swapped in: a vCPU's thread takes signals as a host.
    """
    task, registers = kernel.running(core), core.registers
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
    registers.restore(_initial(kernel), kernel.config.user_max.features & ~_PKRU)
    registers.pkru = INIT_PKRU
    return bytes(frame)


def sigreturn(kernel: Kernel, core: Core, frame: bytes | None = None) -> None:
    """Load the innermost frame, or these bytes in its place; what it lacks becomes initial, PKRU too.

    A frame whose magic words or sizes the kernel does not believe is taken for an FXSAVE image, as is one that is
    larger than the task's own: a child of a handler that used tiles has those. Components that the frame was not
    made for become initial; supervisor components stay. Where the bytes are refused, raises ImageError, and the
    task dies (SIGSEGV).
    """
    task = kernel.running(core)
    if not task.frames:
        raise VsoError(f"{task.name} is in no signal handler", help="deliver a signal first")
    innermost = task.frames.pop()
    data = innermost if frame is None else frame
    state = task.fpu.fpstate
    verdict = predict(data, Consumer.SIGRETURN, _target(kernel, state))
    if verdict.refusals:
        refusal = _refusal(verdict.refusals[0])
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


def _target(kernel: Kernel, state: Fpstate) -> Target:
    return Target.from_cpu(kernel.cpu).with_(user_xfeatures=state.user_xfeatures, xfd=state.xfd)


def _refusal(finding: Finding) -> ImageError:
    return ImageError(
        f"{finding.id}: {finding.message}",
        offset=finding.offset,
        found=finding.found,
        expected=finding.expected,
        help=finding.help,
    )


def _initial(kernel: Kernel) -> Image:
    return Image.initial(kernel.config.kernel_layout(LEGACY))
