"""Which programs a run runs, with what data, and what each must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from fpstate.arch.component import USER_DYNAMIC, mask_names
from fpstate.arch.cpu import Cpu
from fpstate.errors import ProgramError, UnsupportedHere
from fpstate.program.builtin import BUILTIN, Builtin
from fpstate.program.fault import FAULTS
from fpstate.program.load import Format, Program
from fpstate.vso.permission import Kind

if TYPE_CHECKING:
    from fpstate.engine.model.script import Script

FAULT_PREFIX = "faults/"
SEEDS = 8
"""Distinct data of a built-in program in one mix: its known results are computed once each."""
CANARY_SEEDS = 1 << 32
"""Every canary has a seed, and so a pattern, of its own; far from the other programs' data."""


class Runnable(Protocol):
    """A guest program, or a script."""

    @property
    def name(self) -> str:
        """What it is called in reports."""


class Answer(Protocol):
    """What knows a result: a built-in program, or a script."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def default_argument(self) -> int:
        """The usual amount of work."""

    def check(self, result: bytes, seed: int, argument: int | None, features: int) -> str | None:
        """Return what is wrong with a result, or None."""


R = TypeVar("R", bound=Runnable, covariant=True)


@dataclass(frozen=True, slots=True)
class Job(Generic[R]):
    """One vCPU's program and data. ``builtin`` knows the result; None for a program of the user's own."""

    program: R
    builtin: Answer | None
    seed: int
    argument: int

    def check(self, result: bytes, features: int) -> str | None:
        """Return what is wrong with a result, or None where it is right or not known."""
        if self.builtin is None:
            return None
        return self.builtin.check(result, self.seed, self.argument, features)


@dataclass(frozen=True, slots=True)
class Mix(Generic[R]):
    """The programs that take turns, and what was left out of the default mix, with the reason."""

    programs: tuple[tuple[R, Answer | None], ...]
    left_out: tuple[tuple[str, str], ...]

    def jobs(self, count: int, seed: int, argument: int | None) -> list[Job[R]]:
        """Return ``count`` jobs, the programs in turn."""
        return [self._job(index, seed, argument) for index in range(count)]

    def _job(self, index: int, seed: int, argument: int | None) -> Job[R]:
        program, builtin = self.programs[index % len(self.programs)]
        turn = index // len(self.programs)
        own = CANARY_SEEDS + seed + turn if builtin and builtin.name == "canary" else seed + turn % SEEDS
        work = argument if argument is not None else builtin.default_argument if builtin else 0
        return Job(program, builtin, own, work)


def choose(
    names: Sequence[str],
    cpu: Cpu,
    usable: int,
    *,
    requestable: int = 0,
    startable: int = 0,
    format: Format | None,
) -> Mix[Program]:
    """Return the mix of these programs, or without any of all built-in ones that can run on a
    processor with the components in ``usable``.

    ``requestable``: what would be usable if it were asked for. ``startable``: what the processor has besides. A
    program that is named may need it: it is then denied. Raises
    ProgramError for a file that cannot be run, UnsupportedHere for a named one that needs more.
    """
    if names:
        return Mix(tuple(_named(name, cpu, usable | startable, format) for name in names), ())
    chosen, left_out = [], []
    for builtin in BUILTIN.values():
        missing = builtin.missing(cpu, usable)
        if missing:
            left_out.append(
                (builtin.name, f"needs {missing}{_how_to_get(builtin.required & ~usable & requestable)}")
            )
        elif builtin.name != "probe":
            chosen.append((builtin.load(), builtin))
    return Mix(tuple(chosen), tuple(left_out))


def _how_to_get(components: int) -> str:
    names = ",".join(name.lower() for name in mask_names(components & USER_DYNAMIC))
    return f" (--request {names})" if names else ""


def choose_scripts(names: Sequence[str], usable: int, *, guests_only: bool) -> Mix[Script]:
    """Return the mix of these scripts of the model engine, or without any of all that can run.

    Raises ProgramError for a name that no script has, UnsupportedHere for a script that needs more.
    """
    from fpstate.engine.model.scripts import SCRIPTS

    if names:
        for name in names:
            if name not in SCRIPTS:
                raise ProgramError(name, "no such script", help="known: " + ", ".join(SCRIPTS))
            if missing := SCRIPTS[name].missing(usable):
                raise UnsupportedHere(
                    f"{name} needs {missing}", help="name a processor that has it with --cpu"
                )
        return Mix(tuple((SCRIPTS[name], SCRIPTS[name]) for name in names), ())
    mixed = [script for script in SCRIPTS.values() if script.in_mix]
    reasons = {script.name: f"needs {missing}" for script in mixed if (missing := script.missing(usable))} | {
        script.name: "is for hosts" for script in mixed if guests_only and script.kind is Kind.HOST
    }
    chosen = tuple((script, script) for script in mixed if script.name not in reasons)
    return Mix(chosen, tuple(reasons.items()))


def _named(name: str, cpu: Cpu, usable: int, format: Format | None) -> tuple[Program, Builtin | None]:
    builtin = BUILTIN.get(name)
    if builtin:
        missing = builtin.missing(cpu, usable)
        if missing:
            raise UnsupportedHere(f"{name} needs {missing}", help="see: fpstate cpu")
        return builtin.load(), builtin
    if name.startswith(FAULT_PREFIX):
        fault = FAULTS.get(name.removeprefix(FAULT_PREFIX))
        if fault is None:
            raise ProgramError(name, "no such program", help="known: " + ", ".join(FAULTS))
        return fault.load(), None
    try:
        return Program.from_file(name, format=format), None
    except ProgramError as error:
        if "/" not in name and "." not in name:
            error.help = f"{error.help} Built in are: {', '.join(BUILTIN)}."
        raise
