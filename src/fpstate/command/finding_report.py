"""A finding as every verb prints it in JSON."""

from __future__ import annotations

from typing import Any

from fpstate.arch.component import component_name
from fpstate.image.finding import Finding


def finding_data(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON-ready data; values are hexadecimal strings."""
    return {
        "id": finding.id,
        "severity": finding.severity.value,
        "message": finding.message,
        "component": None if finding.component is None else component_name(finding.component),
        "register": finding.register,
        "offset": finding.offset,
        "found": hexadecimal(finding.found),
        "expected": hexadecimal(finding.expected),
        "source": finding.source,
        "help": finding.help,
    }


def hexadecimal(value: int | None) -> str | None:
    """Return a value as a hexadecimal string, None as it is."""
    return None if value is None else hex(value)
