"""Signals in the kernel model: the frame that holds the state, the handler's initial state, the way back.

Source: Linux ``arch/x86/kernel/fpu/signal.c`` and ``fpu__clear_user_states`` in ``core.c``.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.arch.layout import Layout
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.task import Frame
from fpstate.errors import ImageError, VsoError
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from fpstate.image.subject import XSTATE_BV_AT
from fpstate.vso.task import INIT_PKRU

_PKRU: Final = mask_of(Component.PKRU)
_FXSAVE_SIZE: Final = 512


def deliver_signal(kernel: Kernel, core: Core) -> bytes:
    """Put the current task's user state into a frame on its stack; returns the frame's XSAVE image.

    The handler begins with initial user components and the PKRU of a new program; supervisor components stay.
    The frame is in the standard format and states PKRU, whatever it is (Linux 6.12).
    """
    task, registers = kernel.running(core), core.registers
    user = task.fpu.fpstate.user_xfeatures | LEGACY
    frame = bytearray(Layout.standard(kernel.cpu, user).size)
    if kernel.cpu.has("XSAVE"):
        core.processor.xsave(frame, user)
        stated = int.from_bytes(frame[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little") | user & _PKRU
        frame[XSTATE_BV_AT : XSTATE_BV_AT + 8] = stated.to_bytes(8, "little")
    else:
        core.processor.fxsave(memoryview(frame)[:_FXSAVE_SIZE])
    task.frames.append(Frame(bytes(frame), user))
    initial = Image.initial(kernel.config.kernel_layout(LEGACY))
    registers.restore(initial, kernel.config.user_max.features & ~_PKRU)
    registers.pkru = INIT_PKRU
    return bytes(frame)


def sigreturn(kernel: Kernel, core: Core, frame: bytes | None = None) -> None:
    """Load the innermost frame, or these bytes in its place; what it lacks becomes initial, PKRU too.

    Components that the task came to have in the handler, and the frame knows nothing of, become initial too;
    supervisor components stay. Where the processor's rules refuse the bytes, raises ImageError, and the task dies
    (SIGSEGV).
    """
    task = kernel.running(core)
    if not task.frames:
        raise VsoError(f"{task.name} is in no signal handler", help="deliver a signal first")
    saved = task.frames.pop()
    data = saved.data if frame is None else frame
    if not kernel.cpu.has("XSAVE"):
        core.processor.fxrstor(data[:_FXSAVE_SIZE])
        return
    state = task.fpu.fpstate
    target = Target.from_cpu(kernel.cpu).with_(
        user_xfeatures=state.user_xfeatures, xfd=state.xfd, requested=saved.features
    )
    verdict = predict(data, Consumer.XRSTOR, target)
    if verdict.refusals:
        first = verdict.refusals[0]
        refusal = ImageError(
            f"{first.id}: {first.message}",
            offset=first.offset,
            found=first.found,
            expected=first.expected,
            help=first.help,
        )
        kernel.kill(core, refusal)
        raise refusal
    core.processor.xrstor(data.ljust(kernel.config.user_max.size, b"\0"), saved.features)
    if newer := state.user_xfeatures & ~saved.features:
        core.registers.restore(Image.initial(kernel.config.kernel_layout(LEGACY)), newer)
