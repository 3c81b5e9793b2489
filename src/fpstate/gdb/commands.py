"""``fpstate show``, ``fpstate threads`` and ``info fpenv``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable

import gdb

from fpstate.arch import Cpu
from fpstate.command.threads import describe, table
from fpstate.errors import FpStateError
from fpstate.gdb import text
from fpstate.gdb.inferior import States, states
from fpstate.gdb.opinion import disagreements
from fpstate.printable import printable
from fpstate.source.census import odd_ones
from fpstate.source.thread import ThreadState


class _Command(gdb.Command):  # type: ignore[misc]
    """A command whose lines ``answer`` yields; errors of fpstate become gdb's."""

    def __init__(self, name: str, kind: int, answer: Callable[[list[str]], Iterable[str]]) -> None:
        self.__doc__ = answer.__doc__  # gdb's help
        super().__init__(name, kind)
        self._answer = answer

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Print the answer, paged as gdb does."""
        try:
            for line in self._answer(shlex.split(argument)):
                gdb.write(printable(line) + "\n")
        except FpStateError as error:
            told = [str(error), *([f"  try: {error.help}"] if error.help else [])]
            raise gdb.GdbError("\n".join(map(printable, told))) from error
        except (ValueError, OSError) as error:
            raise gdb.GdbError(printable(f"fpstate: {error}")) from error


def register() -> None:
    """Add the commands to this gdb."""
    gdb.Command("fpstate", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)
    _Command("fpstate show", gdb.COMMAND_DATA, show)
    _Command("fpstate threads", gdb.COMMAND_DATA, threads)
    _Command("info fpenv", gdb.COMMAND_STATUS, fpenv)


def show(arguments: list[str]) -> Iterable[str]:
    """Show the registers of this thread's x87, SSE, AVX, ... state that are not initial, or those named.

    fpstate show [-t LANES] [-c CPU] [REGISTER ...]
    LANES is f16 bf16 f32 f64 i8 ... i64 u8 ... u64; CPU is a processor of fpstate's catalog that wrote the core.
    Values come from the kernel's bytes (ptrace, core notes), not from gdb; where gdb reads something else it is said.
    """
    options, names = text.options(arguments, {"-t": "", "-c": ""})
    found, thread = _selected(options["-c"])
    yield from text.heading(thread, found.origin)
    yield from text.registers(thread.image, names, options["-t"])
    yield from text.disagreements(disagreements(thread.image, gdb.newest_frame()), gdb.VERSION)


def threads(arguments: list[str]) -> Iterable[str]:
    """Compare the control words of all threads: rounding, traps, flushing, keys; the odd ones are marked.

    fpstate threads [-c CPU]
    """
    options, _ = text.options(arguments, {"-c": ""})
    found = _states(_lwps(), options["-c"])
    return table(describe(found.origin, found.threads, odd_ones(found.threads)))


def fpenv(arguments: list[str]) -> Iterable[str]:
    """Show this thread's floating-point environment, decoded: MXCSR, x87 control, status and tags, PKRU.

    info fpenv [-c CPU]
    """
    options, _ = text.options(arguments, {"-c": ""})
    found, thread = _selected(options["-c"])
    yield from text.heading(thread, found.origin)
    yield from text.environment(thread.image)


def _selected(cpu: str) -> tuple[States, ThreadState]:
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("no thread is selected: run the program or load a core")
    found = _states([thread.ptid[1]], cpu)
    return found, found.of(thread.ptid[1])


def _states(lwps: list[int], cpu: str) -> States:
    return states(lwps, Cpu.catalog(cpu) if cpu else None)


def _lwps() -> list[int]:
    threads = sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)
    if not threads:
        raise gdb.GdbError("there is no thread: run the program or load a core")
    return [thread.ptid[1] for thread in threads]
