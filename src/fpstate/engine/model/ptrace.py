"""ptrace in the kernel model: a stopped task's state, read and written as NT_X86_XSTATE.

Source: Linux ``xstateregs_get`` and ``xstateregs_set`` in ``arch/x86/kernel/fpu/regset.c``, and
``copy_uabi_to_xstate`` in ``xstate.c``; compared with an Emerald Rapids under Linux 6.18.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.arch.layout import Layout
from fpstate.engine.model.kernel import Kernel
from fpstate.engine.model.signals import refusal_of, target_of
from fpstate.engine.model.task import Task
from fpstate.errors import VsoError
from fpstate.image import Image
from fpstate.image.consumer import Consumer
from fpstate.image.control import MXCSR_INIT
from fpstate.image.rules import predict
from fpstate.image.subject import MXCSR_AT, XSTATE_BV_AT
from fpstate.vso.fpstate import stated_components
from fpstate.vso.placement import copier
from fpstate.vso.uabi import export_uabi, merge_uabi

_PKRU: Final = mask_of(Component.PKRU)


def get_regset(kernel: Kernel, task: Task) -> bytes:
    """Return PTRACE_GETREGSET's answer: as many bytes as any task may come to need, whatever this one has used.

    What was written and was not loaded since reads back as it was written: an illegal TILECFG, or an MXCSR that the
    registers will not get. Raises VsoError while the task runs.
    """
    _check_stopped(kernel, task)
    if task.written is not None:
        return task.written
    state, config = task.fpu.fpstate, kernel.config
    return export_uabi(state.vso.image(), config, config.user_max.features, task.fpu.pkru)


def set_regset(kernel: Kernel, task: Task, data: bytes) -> None:
    """Do what PTRACE_SETREGSET does: replace the user components, PKRU too; what is not stated becomes initial.

    Dynamic components are taken once the task has used them, permission alone does not do. Raises ImageError where
    the kernel answers EINVAL or EFAULT; nothing changed then.
    """
    _check_stopped(kernel, task)
    state, config = task.fpu.fpstate, kernel.config
    target = target_of(kernel, state)
    verdict = predict(data, Consumer.PTRACE, target)
    if verdict.refusals:
        raise refusal_of(verdict.refusals[0])
    layout = Layout.standard(config.cpu, config.user_max.features)
    stated = int.from_bytes(data[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little")
    image = Image(bytearray(data[: layout.size]), layout, "uabi")
    pkru = image.registers["pkru"] if stated & _PKRU else 0
    written = bytearray(export_uabi(image, config, layout.mask, pkru))
    written[XSTATE_BV_AT : XSTATE_BV_AT + 8] = stated.to_bytes(8, "little")
    if target.compacted_restore and verdict.mxcsr == MXCSR_INIT:
        image.store.view[MXCSR_AT : MXCSR_AT + 4] = MXCSR_INIT.to_bytes(4, "little")
    elif not target.compacted_restore:  # the standard format brings MXCSR whatever is stated
        kept = state.vso.image().registers.canonical("mxcsr")
        image.registers["mxcsr"] = kept if verdict.mxcsr is None else verdict.mxcsr
    merged = merge_uabi(image, state.vso.image(), config.kernel_layout((state.xfeatures | LEGACY) & ~_PKRU))
    task.manager.store(state.vso, stated_components(merged), merged.layout, copier(merged))
    task.fpu.pkru, task.written = pkru, bytes(written)


def _check_stopped(kernel: Kernel, task: Task) -> None:
    if any(core.current is task for core in kernel.cores):
        raise VsoError(f"{task.name} runs", help="switch it out first: a tracee is stopped")
    if task.fpu.guest_active:
        raise VsoError(f"{task.name} has a guest's state in", help="leave the guest first")
