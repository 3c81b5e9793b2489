"""What commands and the leak audit need of an engine that runs guests, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.program.block import Block
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.scheduler import Engine, RunQueue
from fpstate.vso.vcpu import Vcpu


class Guest(Vcpu, Protocol):
    """A vCPU that runs a guest program; ended, ``block`` holds what the program left."""

    block: Block | None

    def attach(self) -> None:
        """Be told that the VSO's state or buffer was changed from outside."""


G = TypeVar("G", bound=Guest)
P = TypeVar("P", contravariant=True)


class GuestQueue(RunQueue[G], Protocol[G]):
    """A queue that can also be run for so many slices."""

    def run_slices(self, quantum_ns: int, slices: int) -> list[G]:
        """Run about so many slices, or until none can run; returns the vCPUs that ended."""


class GuestEngine(Engine[G], Protocol[G, P]):
    """An engine over one manager, for programs of type P. ``managed``: the components that it keeps in VSOs (PKRU is
    switched apart from them); ``kind``: whose VSOs it makes by default."""

    manager: Manager
    managed: int
    kind: Kind

    def offered(self, permitted: int) -> int:
        """Return the components that a program is told it may use, of a VSO with these permitted."""

    def vcpu(
        self,
        program: P,
        *,
        seed: int = 0,
        argument: int = 0,
        input: bytes = b"",
        kind: Kind | None = None,
        permitted: int | None = None,
        memory_size: int = DEFAULT_MEMORY,
    ) -> G:
        """Return a new vCPU that will run a program from its start, with a new VSO."""

    def queue(self) -> GuestQueue[G]:
        """Return an empty queue for one host thread."""

    def scratch(self) -> Iterable[tuple[str, bytes | bytearray]]:
        """Yield the memory through which this thread's states pass, by name: all zeros while no queue runs."""

    def close(self) -> None:
        """Give back what the engine holds of the system; vCPUs that ended can still be read."""
