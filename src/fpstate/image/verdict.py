"""What becomes of an image and of the registers when a consumer is given it."""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.arch.component import mask_text
from fpstate.image.consumer import Consumer
from fpstate.image.finding import Finding


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a consumer does with an image.

    ``refusals`` are the findings for which it is rejected, and ``answer`` is what the caller then sees (#GP, #PF,
    #NM, SIGSEGV, EINVAL, ...).

    ``loaded``, ``initialised`` and ``kept`` part the consumer's components by what becomes of their registers, after
    a refusal too: most refusals leave all as it was, sigreturn makes all initial (PKRU, which it gives the value of a
    new program, is then in none of the three), and Intel's processors have done part of a compacted restore when they
    come to MXCSR. ``lost`` are those that the image states and that do not reach the registers. ``reported`` are
    those that PTRACE_GETREGSET and KVM_GET_XSAVE then give back as the image states them, which may be more than was
    loaded. ``fx_only``: a frame is taken for an FXSAVE image.

    ``mxcsr`` and ``pkru`` are the registers afterwards, None where they stay what they were, or do not exist;
    ``mxcsr_lost`` says that a stated MXCSR did not get there, ``reported_mxcsr`` is what GETREGSET and GET_XSAVE
    answer.
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
    reported: int = 0
    pkru: int | None = None

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
