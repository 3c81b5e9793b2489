"""Two ways to meet an illegal image: ``sanitise`` masks as the kernel does and lists each change, ``refuse`` raises.

They are not to be mixed up: sanitising what came from an attacker, or from a bug, hides it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.arch.layout import Layout
from fpstate.errors import ImageError
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Finding, Severity
from fpstate.image.repair import Leftovers, Repair, Workpiece
from fpstate.image.rules import RULES, check


@dataclass(frozen=True, slots=True)
class Sanitised:
    """The new image, what was changed in it, and what is still to be said of it; no finding is an error."""

    data: bytes
    repairs: tuple[Repair, ...]
    findings: tuple[Finding, ...]


def refuse(
    data: bytes | bytearray | memoryview, consumer: Consumer, target: Target, *, layout: Layout | None = None
) -> None:
    """Raise ImageError with the first reason for which the consumer would reject these bytes, if there is one."""
    for finding in check(data, consumer, target, layout=layout):
        if finding.severity is Severity.ERROR:
            raise ImageError(
                f"{finding.id}: {finding.message} ({finding.source})",
                offset=finding.offset,
                found=finding.found,
                expected=finding.expected,
                help=finding.help or RULES[finding.id].title,
            )


def sanitise(
    data: bytes | bytearray | memoryview,
    consumer: Consumer,
    target: Target,
    *,
    layout: Layout | None = None,
    leftovers: Leftovers = "auto",
) -> Sanitised:
    """Return an image that the consumer takes, with every change that this took.

    Reserved bits become 0, components that the consumer does not take become initial, the format and the
    layout become those that it reads, and the length and a signal frame's own words what it expects. Values
    of registers otherwise stay. Raises ImageError where the layout is not known, and so nothing can be kept.
    """
    work = Workpiece(bytearray(data), consumer, target, layout)
    work.header()
    work.leftovers(leftovers)
    work.components()
    work.registers()
    work.format()
    work.length()
    result = bytes(work.data)
    refuse(result, consumer, target)
    return Sanitised(result, tuple(work.repairs), tuple(check(result, consumer, target)))
