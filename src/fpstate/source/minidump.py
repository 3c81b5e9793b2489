"""Windows minidumps: the state of each thread, in its CONTEXT and the XSTATE area behind it."""

from __future__ import annotations

from dataclasses import replace

from fpstate.arch.cpu import Cpu
from fpstate.errors import AmbiguousLayout, ImageError, LayoutError, SourceError
from fpstate.image.finding import Finding, Severity
from fpstate.source.minidump_file import Location, Minidump, XstateConfig, read_minidump
from fpstate.source.stream import Stream
from fpstate.source.thread import ThreadState
from fpstate.source.windows_context import read_context


def minidump_threads(stream: Stream, *, cpu: Cpu | None = None) -> list[ThreadState]:
    """Return the state of every thread in a minidump, in the order of its list.

    Of the thread that raised the exception it is the state at the exception, and a finding says so. The layout is
    the one that the dump states (``"note"``), else that of ``cpu`` (``"given"``), else the one on which known
    processors agree (``"inferred"``). Raises SourceError, with the byte, for what is damaged, AmbiguousLayout
    where known processors disagree.
    """
    dump = read_minidump(stream)
    config = dump.xstate_config()
    raised = dump.exception()
    states = []
    for tid, place in dump.threads():
        if raised is not None and raised[0] == tid:
            state = _state(dump, tid, raised[1], config, cpu)
            note = () if raised[1] == place else (_at_exception(),)
            states.append(replace(state, findings=(*state.findings, *note)))
        else:
            states.append(_state(dump, tid, place, config, cpu))
    return states


def _state(
    dump: Minidump, tid: int, place: Location, config: XstateConfig | None, cpu: Cpu | None
) -> ThreadState:
    name = dump.stream.name
    try:
        context = read_context(dump.context(place), dump.machine, config, cpu)
    except AmbiguousLayout as error:
        raise AmbiguousLayout(f"{name} at byte {place.offset}: {error}", error.candidates) from error
    except ImageError as error:
        raise SourceError(
            name, str(error), offset=place.offset + (error.offset or 0), help=error.help
        ) from error
    except LayoutError as error:
        raise SourceError(name, str(error), offset=place.offset, help=error.help) from error
    return ThreadState(tid, context.image, dump.machine, findings=context.findings)


def _at_exception() -> Finding:
    return Finding(
        "SRC013",
        Severity.NOTE,
        "the registers at the exception; the thread list has those at which the dump was written",
        source="MINIDUMP_EXCEPTION_STREAM",
    )
