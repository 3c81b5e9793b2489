"""A finding: one thing worth saying about a state, as data; who prints it decides how."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How bad: an ERROR is refused by a consumer, a WARNING loses or hides something, a NOTE explains."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """``id`` is stable (XS001...). ``offset`` counts bytes from the image's start; ``source`` is where the rule
    comes from (SDM section, kernel symbol)."""

    id: str
    severity: Severity
    message: str
    component: int | None = None
    register: str | None = None
    offset: int | None = None
    found: int | None = None
    expected: int | None = None
    source: str = ""
    help: str = ""
