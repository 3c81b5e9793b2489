"""A child that restores one image after the other and tells what came of it: this processor and kernel as a judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from recording.child import SIGILL, SIGSEGV, Child, Record
from recording.host import NONE, Host, place_of
from recording.images import FAR, Attempt, Restores

from fpstate.arch import Component
from fpstate.image.consumer import ALL

XRSTOR, SIGRETURN = "xrstor64", "sigreturn64"
Told = TypeVar("Told")
_BATCH = 64
_VECTORS = {6: "#UD", 13: "#GP", 14: "#PF", 16: "#MF"}


class Answer(NamedTuple):
    """The exception (``#GP``, ``#PF``, ``#NM``, ``SIGSEGV``; empty: none), and the registers in the standard format."""

    fault: str
    registers: bytes


def attempt(
    image: bytes | bytearray,
    operation: str = XRSTOR,
    *,
    mask: int = ALL,
    offset: int = 0,
    at_end: bool = False,
) -> Attempt:
    """Return a restore of an image.

    ``offset`` is added to an address of 64 bytes' alignment. ``at_end``: memory ends with the image, whose length
    then decides about its alignment.
    """
    trailing = 0 if at_end else FAR + (-len(image) - FAR - offset) % 64
    return Attempt(bytes(image), trailing, operation, mask)


def without_frame() -> Attempt:
    """Return from a signal whose frame points to no image."""
    return Attempt(b"", 0, SIGRETURN, null=True)


class Restorer:
    """Restores images, each after the pattern; so that what is kept can be told from what becomes initial.

    ``permission`` as for recordings: whether the child asked for TILEDATA, and used tiles.
    """

    def __init__(self, program: Path, pattern: bytes | bytearray, *, permission: int = NONE) -> None:
        self.pattern = bytes(pattern)
        self._host = Host.here()
        self._child = Child(program, self._host.cpu, permission=permission)
        self._restores = Restores(self._child, self._host, self.pattern)

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    def ask(self, one: Attempt) -> Answer:
        """Try one restore."""
        return next(self.ask_all([(one, None)]))[1]

    def ask_all(self, attempts: Iterable[tuple[Attempt, Told]]) -> Iterator[tuple[Told, Answer]]:
        """Try restores in order; yields what was told with each, and its answer."""
        source = iter(attempts)
        while batch := list(islice(source, _BATCH)):
            for (each, told), outcome in zip(
                batch, self._restores.run([one for one, _ in batch]), strict=True
            ):
                returned = each.operation == SIGRETURN
                registers = with_pkru(self._host, outcome.registers, outcome.record.pkru)
                yield told, Answer(exception(outcome.record, returned=returned), registers)


def exception(record: Record, *, returned: bool) -> str:
    """Name what a restore ended in; after sigreturn the kernel states no exception, only its signal."""
    if not record.signal:
        return ""
    if returned:
        return "SIGSEGV" if record.signal == SIGSEGV else f"signal {record.signal}"
    fault = record.fault
    assert fault is not None
    if fault[2] is None:
        return "#NM" if record.signal == SIGILL else f"signal {record.signal}"
    return _VECTORS.get(fault[2], f"vector {fault[2]}")


def with_pkru(host: Host, registers: bytes, pkru: int) -> bytes:
    """Put in PKRU as it was before it was opened to save the others."""
    place = place_of(host.standard, Component.PKRU) if host.has_pkru else None
    if place is None:
        return registers
    start = place[0]
    return registers[:start] + pkru.to_bytes(4, "little") + registers[start + 4 :]
