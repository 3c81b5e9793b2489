"""Guests stopped at random points of their runs."""

from __future__ import annotations

import random
import time
from typing import Final

from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.trap import Why
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.errors import VsoError
from fpstate.program.block import YIELD
from fpstate.program.load import Program
from fpstate.source.checkpoint import SavedState

_ATTEMPTS: Final = 40
_ATTEMPTS_FOR_MORE: Final = 8
"""So often a guest that was stopped before its first instruction is started anew."""


class Sampler:
    """Stops one program at points spread over its run, which it measures once, from its start to its end.

    Raises VsoError where the program ends by a fault, or is over before anything can stop it.
    """

    def __init__(
        self,
        session: Session,
        program: Program,
        *,
        argument: int = 0,
        seed: int = 0,
        memory_size: int = DEFAULT_MEMORY,
    ) -> None:
        self.session, self.program = session, program
        self.argument, self.memory_size = argument, memory_size
        self._start(seed)
        started = time.perf_counter_ns()
        session.finish()
        self.nanoseconds = time.perf_counter_ns() - started

    def sample(self, seed: int, source: random.Random) -> SavedState:
        """Run the program with ``seed`` as its data up to a random point, and return it as it is there."""
        longest, at_entry = self.nanoseconds, None
        for attempt in range(_ATTEMPTS):
            self._start(seed)
            if not self._stopped(source.randrange(longest) + 1):
                longest = max(1, longest * 3 // 4)
                continue
            saved = self.session.checkpoint()
            if self.session.has_begun or attempt >= _ATTEMPTS_FOR_MORE:
                return saved
            at_entry = saved
        if at_entry is not None:
            return at_entry
        raise VsoError(
            f"{self.program.name} was over before it could be stopped", help="give it more work: --argument"
        )

    def _start(self, seed: int) -> None:
        self.session.start(self.program, seed=seed, argument=self.argument, memory_size=self.memory_size)

    def _stopped(self, nanoseconds: int) -> bool:
        """Run for so long, yields included; whether the program is still in the middle."""
        end = time.perf_counter_ns() + nanoseconds
        while True:
            stop = self.session.run(max(1, end - time.perf_counter_ns()))
            if stop.why is Why.PREEMPTED:
                return True
            if stop.why is not Why.LEFT:
                raise VsoError(f"{self.program.name} did not go on: {stop}")
            if stop.operation != YIELD:
                return False
