"""What a rule is: one condition that consumers put on an image, as data with a function that looks for breaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fpstate.image.consumer import INSTRUCTIONS, WHOLE_IMAGE, Consumer
from fpstate.image.finding import Finding, Severity
from fpstate.image.subject import Subject

EVERY: Final = frozenset({*WHOLE_IMAGE, Consumer.SIGRETURN32})
"""Those that take an XSAVE image."""
REGSETS: Final = frozenset({Consumer.PTRACE, Consumer.FPREGS, Consumer.PRXFPREG, Consumer.FSAVE})
"""Those that take a regset."""
RESTORES: Final = INSTRUCTIONS | {Consumer.SIGRETURN}
"""Those that have the processor read the bytes by XRSTOR or XRSTORS."""
UABI: Final = frozenset({Consumer.PTRACE, Consumer.KVM})
"""Those that have the kernel copy the bytes (``copy_uabi_to_xstate``)."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where a rule does not hold; ``offset`` in bytes, ``help`` instead of the rule's."""

    message: str
    offset: int | None = None
    found: int | None = None
    expected: int | None = None
    component: int | None = None
    register: str | None = None
    help: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """``id`` is stable and has a section in docs/rules.md. An ERROR is a refusal by its consumers."""

    id: str
    title: str
    severity: Severity
    consumers: frozenset[Consumer]
    source: str
    breaches: Callable[[Subject], Iterable[Breach]]
    help: str = ""

    def findings(self, subject: Subject) -> list[Finding]:
        """Return what this rule finds; the subject's consumer must be one of the rule's."""
        return [
            Finding(
                id=self.id,
                severity=self.severity,
                message=breach.message,
                component=breach.component,
                register=breach.register,
                offset=None if breach.offset is None else breach.offset + subject.origin,
                found=breach.found,
                expected=breach.expected,
                source=self.source,
                help=breach.help or self.help,
            )
            for breach in self.breaches(subject)
        ]
