"""Legality rule by rule: every finding on an image, and what each consumer will do with it.

``check`` collects findings, ``predict`` says what would happen. Both take raw bytes, so that illegal images
can be looked at; both walk the tables of ``refusal``, ``loss`` and ``lint``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of, mask_text
from fpstate.arch.layout import Layout
from fpstate.image.consumer import Consumer, Target
from fpstate.image.control import MXCSR_INIT
from fpstate.image.finding import Finding, Severity
from fpstate.image.lint import LINTS
from fpstate.image.loss import LOSSES, misplaced, mxcsr_is_lost
from fpstate.image.refusal import REFUSALS
from fpstate.image.rule import UABI, Rule
from fpstate.image.subject import Subject

RULES: Final[Mapping[str, Rule]] = MappingProxyType({rule.id: rule for rule in (*REFUSALS, *LOSSES, *LINTS)})
"""Every rule by its id."""

Data = bytes | bytearray | memoryview

_SSE: Final = mask_of(Component.SSE)
_AVX: Final = mask_of(Component.AVX)
_PKRU: Final = mask_of(Component.PKRU)
_ANSWERS: Final = {
    Consumer.XRSTOR: "#GP",
    Consumer.XRSTORS: "#GP",
    Consumer.SIGRETURN: "SIGSEGV",
    Consumer.PTRACE: "EINVAL",
    Consumer.KVM: "EINVAL",
}
_OTHER_ANSWERS: Final = {
    (Consumer.XRSTOR, "XS001"): "#PF",
    (Consumer.XRSTOR, "XS002"): "#PF",
    (Consumer.XRSTORS, "XS001"): "#PF",
    (Consumer.XRSTORS, "XS002"): "#PF",
    (Consumer.XRSTOR, "XS018"): "#NM",
    (Consumer.XRSTORS, "XS018"): "#NM",
    (Consumer.PTRACE, "XS005"): "EFAULT",
    (Consumer.KVM, "XS001"): "EFAULT",
    (Consumer.KVM, "XS002"): "EFAULT",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a consumer does with an image.

    ``refusals`` are the findings for which it is rejected, and ``answer`` is what the caller then sees (#GP,
    SIGSEGV, EINVAL, ...). Otherwise ``loaded``, ``initialised`` and ``kept`` part the consumer's components by
    what becomes of their registers; ``lost`` are those that the image states and that do not reach them.
    ``fx_only``: sigreturn takes the frame for an FXSAVE image. ``mxcsr`` is the register afterwards, None where
    it stays what it was; ``mxcsr_lost`` says that a stated one did not get there. ``reported_mxcsr`` is what
    PTRACE_GETREGSET and KVM_GET_XSAVE answer, which may be something else.
    """

    consumer: Consumer
    refusals: tuple[Finding, ...]
    answer: str = ""
    loaded: int = 0
    initialised: int = 0
    kept: int = 0
    lost: int = 0
    fx_only: bool = False
    mxcsr: int | None = None
    mxcsr_lost: bool = False
    reported_mxcsr: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the consumer takes the image at all."""
        return not self.refusals

    def __str__(self) -> str:
        """``rejected``, ``loaded`` or ``loaded with loss of ...``."""
        if self.refusals:
            return "rejected"
        losses = [mask_text(self.lost)] if self.lost else []
        losses += ["MXCSR"] if self.mxcsr_lost else []
        return "loaded" + (f" with loss of {' and '.join(losses)}" if losses else "")


def check(
    data: Data,
    consumer: Consumer,
    target: Target,
    *,
    address: int = 0,
    layout: Layout | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> list[Finding]:
    """Return every finding for one consumer, in the order of the ids; empty for a clean image.

    ``address`` is where the image is to lie (alignment counts). ``layout`` is the producer's where it is known;
    without it the bytes are taken to be laid out as the target's CPUID says.
    """
    subject = Subject(data, consumer, target, address=address, layout=layout)
    return [finding for rule in _of(consumer, rules) for finding in rule.findings(subject)]


def predict(
    data: Data,
    consumer: Consumer,
    target: Target,
    *,
    address: int = 0,
    layout: Layout | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> Verdict:
    """Return what the consumer will do with these bytes; the arguments are those of ``check``."""
    subject = Subject(data, consumer, target, address=address, layout=layout)
    refusals = [finding for rule in _of(consumer, rules, refusing=True) for finding in rule.findings(subject)]
    if refusals:
        return Verdict(consumer, tuple(refusals), _answer(consumer, refusals), fx_only=subject.fx_only)
    return _kernel_copies(subject) if consumer in UABI else _processor_loads(subject)


def _answer(consumer: Consumer, refusals: list[Finding]) -> str:
    """What the caller sees; where the processor reads the header at all, #GP for it comes first."""
    answers = [_OTHER_ANSWERS.get((consumer, finding.id), _ANSWERS[consumer]) for finding in refusals]
    header_is_read = consumer in (Consumer.XRSTOR, Consumer.XRSTORS) and refusals[0].id != "XS001"
    return "#GP" if header_is_read and "#GP" in answers else answers[0]


def _of(consumer: Consumer, rules: Mapping[str, Rule], *, refusing: bool = False) -> Iterable[Rule]:
    if rules is RULES:
        return _standing(consumer, refusing)
    return [rule for rule in rules.values() if _applies(rule, consumer, refusing)]


@cache
def _standing(consumer: Consumer, refusing: bool) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES.values() if _applies(rule, consumer, refusing))


def _applies(rule: Rule, consumer: Consumer, refusing: bool) -> bool:
    return consumer in rule.consumers and not (refusing and rule.severity is not Severity.ERROR)


def _processor_loads(subject: Subject) -> Verdict:
    """XRSTOR, XRSTORS, and sigreturn, which runs XRSTOR or FXRSTOR and then initialises the rest."""
    target, rfbm = subject.target, subject.rfbm
    stated = LEGACY if subject.fx_only else subject.xstate_bv
    loaded = rfbm & stated
    if subject.consumer is Consumer.SIGRETURN:
        managed, mxcsr = target.user_xfeatures, _frame_mxcsr(subject)
        initialised = managed & ~loaded
    else:
        managed = target.xcr0 | (target.xss if subject.consumer is Consumer.XRSTORS else 0)
        initialised, mxcsr = rfbm & ~stated, _restored_mxcsr(subject)
    lost = subject.xstate_bv & (managed | target.xcr0) & ~loaded | misplaced(subject)
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
    stated = subject.xstate_bv
    loaded = stated & ~(target.guest_xfd if is_kvm else 0)
    managed = target.kvm_xcr0 if is_kvm else target.user_xfeatures
    kept = _PKRU & managed & ~loaded if is_kvm else 0
    hidden = loaded & ~(target.guest_xcr0 | LEGACY) if is_kvm else 0
    mxcsr, reported = _copied_mxcsr(subject, loaded & ~hidden)
    return Verdict(
        *(subject.consumer, ()),
        loaded=loaded,
        initialised=managed & ~loaded & ~kept,
        kept=kept,
        lost=stated & ~loaded | hidden | misplaced(subject),
        mxcsr=mxcsr,
        mxcsr_lost=mxcsr_is_lost(subject),
        reported_mxcsr=reported,
    )


def _copied_mxcsr(subject: Subject, visible: int) -> tuple[int | None, int]:
    """MXCSR in the register, and as the kernel's own export then states it (``__copy_xstate_to_uabi_buf``)."""
    copied = bool(subject.xstate_bv & (LEGACY | _AVX))
    reported = subject.mxcsr if copied and visible & (_SSE | _AVX) else MXCSR_INIT
    if subject.target.compacted_restore:
        return (subject.mxcsr if subject.xstate_bv & _SSE else MXCSR_INIT), reported
    return (subject.mxcsr if copied else None), reported
