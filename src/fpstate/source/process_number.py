"""Numbers of processes and threads, as command lines and callers give them."""

from __future__ import annotations

import re
from typing import Final

from fpstate.errors import SourceError

LARGEST: Final = 0x7FFFFFFF
"""pid_t has 31 bits for numbers (include/linux/pid_namespace.h bounds them by PID_MAX_LIMIT, 4194304)."""
_SHOWN: Final = 24
_DIGITS: Final = re.compile(r"[0-9]+")


def process_number(text: str) -> int | None:
    """Return the number of a process that a text names; None where it names something else.

    Raises SourceError for a number that no process has.
    """
    if not _DIGITS.fullmatch(text):
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > len(str(LARGEST)):  # int() refuses thousands of digits
        raise _no_process(digits)
    number = int(digits)
    check_number(number)
    return number


def check_number(number: int) -> None:
    """Raise SourceError for the number of a process or a thread that none can have."""
    if not 1 <= number <= LARGEST:
        raise _no_process(f"{number:d}" if abs(number) < 1 << 64 else f"{number:#x}")


def _no_process(digits: str) -> SourceError:
    shown = digits if len(digits) <= _SHOWN else f"{digits[:_SHOWN]}..."
    return SourceError(
        f"process {shown}",
        f"no process or thread has this number: they are 1 to {LARGEST}",
        help="list processes with ps; a file whose name is a number is read as ./NUMBER",
    )
