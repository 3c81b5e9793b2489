"""What a consumer does to the registers with an image that it takes, and with one that it refuses.

Sources: SDM Vol. 1, 13.8 (XRSTOR); Linux ``restore_fpregs_from_user``, ``__fpu_restore_sig``,
``copy_uabi_to_xstate``, ``fpu__clear_user_states``, ``xfpregs_set``, ``fpregs_set``; KVM
``kvm_arch_vcpu_ioctl_set_fpu``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPACTED_BIT, LEGACY, Component, mask_of
from fpstate.image.answer import answer_of, first_reason
from fpstate.image.consumer import FRAMES, INIT_PKRU, INSTRUCTIONS, Consumer, Target
from fpstate.image.control import MXCSR_INIT
from fpstate.image.finding import Finding
from fpstate.image.loss import dropped_tilecfg, misplaced, mxcsr_is_lost
from fpstate.image.subject import Subject
from fpstate.image.verdict import Verdict

_X87: Final = mask_of(Component.X87)
_SSE: Final = mask_of(Component.SSE)
_AVX: Final = mask_of(Component.AVX)
_PKRU: Final = mask_of(Component.PKRU)
_TILECFG: Final = mask_of(Component.TILECFG)


def taken(subject: Subject) -> Verdict:
    """Return the verdict on an image that breaks no rule of its consumer."""
    return _TAKEN[subject.consumer](subject)


def refused(subject: Subject, refusals: list[Finding]) -> Verdict:
    """Return the verdict on an image that its consumer refuses for these findings."""
    consumer, target = subject.consumer, subject.target
    ids = [finding.id for finding in refusals]
    answer = answer_of(consumer, ids, target)
    if consumer in FRAMES:
        return cleared(target, consumer, tuple(refusals), answer, fx_only=subject.fx_only)
    loaded = initialised = 0
    partial = consumer in INSTRUCTIONS and subject.compacted and target.partial_restore
    if partial and first_reason(ids, target) == "XS017":
        loaded = subject.rfbm & subject.xstate_bv & LEGACY
        initialised = subject.rfbm & ~subject.xstate_bv & ~_PKRU
    return Verdict(
        *(consumer, tuple(refusals), answer),
        loaded=loaded,
        initialised=initialised,
        kept=_managed(subject) & ~loaded & ~initialised,
    )


def cleared(
    target: Target,
    consumer: Consumer = Consumer.SIGRETURN,
    refusals: tuple[Finding, ...] = (),
    answer: str = "",
    *,
    fx_only: bool = False,
) -> Verdict:
    """Return what sigreturn leaves where the frame's ``fpstate`` is NULL, or its image refused.

    All user components are initial, but PKRU has the value of a new program (``fpu__clear_user_states``).
    """
    managed = target.user_xfeatures
    return Verdict(
        *(consumer, refusals, answer),
        initialised=managed & ~_PKRU,
        fx_only=fx_only,
        mxcsr=MXCSR_INIT,
        pkru=INIT_PKRU if managed & _PKRU else None,
    )


def _managed(subject: Subject) -> int:
    target, consumer = subject.target, subject.consumer
    if consumer in INSTRUCTIONS:
        return target.xcr0 | (target.xss if consumer is Consumer.XRSTORS else 0)
    return target.kvm_xcr0 if consumer in (Consumer.KVM, Consumer.KVM_FPU) else target.user_xfeatures


def _meant(subject: Subject) -> int:
    """The components that XSTATE_BV can mean: this processor's, and what a frame of another one asks for."""
    foreign = subject.frame.xfeatures & ~COMPACTED_BIT if subject.fx_only and subject.is_frame else 0
    return subject.target.xcr0 | foreign


def _processor_loads(subject: Subject) -> Verdict:
    """XRSTOR, XRSTORS, and sigreturn, which runs XRSTOR or FXRSTOR and then initialises the rest."""
    managed, rfbm = _managed(subject), subject.rfbm
    stated = LEGACY if subject.fx_only else subject.xstate_bv
    dropped = _TILECFG if dropped_tilecfg(subject) else 0
    loaded = rfbm & stated & ~dropped
    if subject.consumer is Consumer.SIGRETURN:
        initialised, mxcsr = managed & ~loaded, _frame_mxcsr(subject)
    else:
        initialised, mxcsr = rfbm & ~stated | dropped, _restored_mxcsr(subject)
    lost = subject.xstate_bv & (managed | _meant(subject)) & ~loaded | misplaced(subject)
    stated_mxcsr = bool(stated & (_SSE if subject.compacted and not subject.fx_only else _SSE | _AVX))
    return Verdict(
        *(subject.consumer, ()),
        loaded=loaded,
        initialised=initialised,
        kept=managed & ~loaded & ~initialised,
        lost=lost,
        fx_only=subject.fx_only,
        mxcsr=mxcsr,
        mxcsr_lost=stated_mxcsr and mxcsr != subject.mxcsr and not (lost & stated & _SSE),
        pkru=_pkru(subject, loaded, initialised),
    )


def _restored_mxcsr(subject: Subject) -> int | None:
    """MXCSR after XRSTOR or XRSTORS: the formats differ in what brings it (SDM Vol. 1, 13.8)."""
    if not subject.compacted:
        return subject.mxcsr if subject.rfbm & (_SSE | _AVX) else None
    if not subject.rfbm & _SSE:
        return None
    return subject.mxcsr if subject.xstate_bv & _SSE else MXCSR_INIT


def _frame_mxcsr(subject: Subject) -> int | None:
    """MXCSR after sigreturn: what its restore gives, then what initialising the other components does to it."""
    left = subject.target.user_xfeatures & ~subject.rfbm
    overwriting = _SSE if subject.target.compacted_restore else _SSE | _AVX
    if left & overwriting:
        return MXCSR_INIT
    return subject.mxcsr if subject.fx_only else _restored_mxcsr(subject)


def _kernel_copies(subject: Subject) -> Verdict:
    """ptrace and KVM: the kernel copies what is present, and restores it later in its own format."""
    target, is_kvm = subject.target, subject.consumer is Consumer.KVM
    stated, managed = subject.xstate_bv, _managed(subject)
    copied = stated & ~(target.guest_xfd if is_kvm else 0)
    loaded = copied & ~(_TILECFG if dropped_tilecfg(subject) else 0)
    kept = _PKRU & managed & ~loaded if is_kvm else 0
    initialised = managed & ~loaded & ~kept
    hidden = copied & ~(target.guest_xcr0 | LEGACY) if is_kvm else 0
    mxcsr, reported_mxcsr = _copied_mxcsr(subject, copied & ~hidden)
    return Verdict(
        *(subject.consumer, ()),
        loaded=loaded,
        initialised=initialised,
        kept=kept,
        lost=stated & ~loaded | hidden | misplaced(subject),
        mxcsr=mxcsr,
        mxcsr_lost=mxcsr_is_lost(subject),
        reported_mxcsr=reported_mxcsr,
        reported=copied & ~hidden,
        pkru=_pkru(subject, loaded, initialised),
    )


def _copied_mxcsr(subject: Subject, visible: int) -> tuple[int | None, int]:
    """MXCSR in the register, and as the kernel's own export then states it (``__copy_xstate_to_uabi_buf``)."""
    copied = bool(subject.xstate_bv & (LEGACY | _AVX))
    reported = subject.mxcsr if copied and visible & (_SSE | _AVX) else MXCSR_INIT
    if subject.target.compacted_restore:
        return (subject.mxcsr if subject.xstate_bv & _SSE else MXCSR_INIT), reported
    return (subject.mxcsr if copied else None), reported


def _copied_frame(subject: Subject) -> Verdict:
    """The sigreturn of a 32-bit program: the kernel copies as for ptrace, then takes x87 from the FSAVE part.

    What the frame's xfeatures lack becomes initial.
    """
    target, managed = subject.target, _managed(subject)
    stated = LEGACY if subject.fx_only else subject.xstate_bv
    loaded = subject.rfbm & stated & ~(_TILECFG if dropped_tilecfg(subject) else 0)
    initialised = managed & ~loaded
    brings_mxcsr = loaded & _SSE if target.compacted_restore else stated & (LEGACY | _AVX)
    initial_mxcsr = MXCSR_INIT if target.compacted_restore else None
    return Verdict(
        *(subject.consumer, ()),
        loaded=loaded,
        initialised=initialised,
        lost=subject.xstate_bv & _meant(subject) & ~loaded | misplaced(subject),
        fx_only=subject.fx_only,
        mxcsr=subject.mxcsr if brings_mxcsr else initial_mxcsr,
        mxcsr_lost=mxcsr_is_lost(subject),
        pkru=_pkru(subject, loaded, initialised),
    )


def _pkru(subject: Subject, loaded: int, initialised: int) -> int | None:
    """Return PKRU afterwards: four of its eight bytes are a register (SDM Vol. 1, 13.5.7)."""
    if loaded & _PKRU:
        return int.from_bytes(subject.read(Component.PKRU)[:4], "little")
    return 0 if initialised & _PKRU else None


def _older_form(loaded: int) -> Callable[[Subject], Verdict]:
    """The requests from before XSAVE: they bring x87, or x87 and SSE, and keep all else."""

    def verdict(subject: Subject) -> Verdict:
        managed = _managed(subject)
        mxcsr = subject.mxcsr if subject.consumer in (Consumer.FPREGS, Consumer.PRXFPREG) else None
        return Verdict(
            *(subject.consumer, ()),
            loaded=loaded,
            kept=managed & ~loaded,
            mxcsr=mxcsr,
            reported_mxcsr=mxcsr,
            reported=loaded,
        )

    return verdict


_TAKEN: Final[Mapping[Consumer, Callable[[Subject], Verdict]]] = MappingProxyType(
    {
        Consumer.XRSTOR: _processor_loads,
        Consumer.XRSTORS: _processor_loads,
        Consumer.SIGRETURN: _processor_loads,
        Consumer.PTRACE: _kernel_copies,
        Consumer.KVM: _kernel_copies,
        Consumer.SIGRETURN32: _copied_frame,
        Consumer.FPREGS: _older_form(LEGACY),
        Consumer.PRXFPREG: _older_form(LEGACY),
        Consumer.FSAVE: _older_form(_X87),
        Consumer.KVM_FPU: _older_form(LEGACY),
    }
)
