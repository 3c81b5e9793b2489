"""The exceptions that a modelled processor raises, with the rule that was broken."""

from __future__ import annotations

from typing import Final

from fpstate.errors import ProcessorFault
from fpstate.image.rules import RULES

UNDEFINED: Final = 6
NOT_AVAILABLE: Final = 7
PROTECTION: Final = 13
PAGE: Final = 14
X87_ERROR: Final = 16
ALIGNMENT: Final = 17

_MNEMONICS: Final = {
    UNDEFINED: "#UD",
    NOT_AVAILABLE: "#NM",
    PROTECTION: "#GP",
    PAGE: "#PF",
    X87_ERROR: "#MF",
    ALIGNMENT: "#AC",
}


def fault(vector: int, reason: str, source: str) -> ProcessorFault:
    """Return the exception with this vector, for a reason that is no matter of an image's bytes."""
    return ProcessorFault(vector, _MNEMONICS[vector], reason, source=source)


def refusal(rule: str, reason: str, *, vector: int = PROTECTION) -> ProcessorFault:
    """Return the exception for an image that breaks a rule, by its id in ``fpstate.image.rules``."""
    return ProcessorFault(vector, _MNEMONICS[vector], reason, rule=rule, source=RULES[rule].source)
