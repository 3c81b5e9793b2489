"""Windows minidumps: the state of each thread, in its CONTEXT and the XSTATE area behind it."""

from __future__ import annotations

from collections.abc import Iterator

from fpstate.arch.cpu import Cpu
from fpstate.errors import AmbiguousLayout, ImageError, LayoutError, SourceError
from fpstate.image.finding import Finding, Severity
from fpstate.source.minidump_file import Location, Minidump, XstateConfig, read_minidump
from fpstate.source.reader import listed
from fpstate.source.stream import Stream
from fpstate.source.thread import ThreadState
from fpstate.source.windows_context import Context, read_context


def minidump_threads(stream: Stream, *, cpu: Cpu | None = None) -> list[ThreadState]:
    """Return what ``minidump_states`` yields, all at once; raises BudgetExceeded where that takes too much memory."""
    return listed(stream, minidump_states(stream, cpu=cpu))


def minidump_states(stream: Stream, *, cpu: Cpu | None = None) -> Iterator[ThreadState]:
    """Yield the state of every thread in a minidump, in the order of its list.

    Of the thread that raised the exception it is the state at the exception, and a finding says so. The layout is
    the one that the dump states (``"note"``), else that of ``cpu`` (``"given"``), else the one on which known
    processors agree (``"inferred"``). Raises SourceError, with the byte, for what is damaged, BudgetExceeded,
    AmbiguousLayout where known processors disagree.
    """
    dump = read_minidump(stream)
    config = dump.xstate_config()
    listed_threads = dump.threads()
    raised, at_exception = dump.exception() or (None, None)

    def shown(tid: int, place: Location) -> Location:
        return at_exception if at_exception and tid == raised else place

    dump.check_contexts(shown(tid, place) for tid, place in listed_threads)
    for batch in listed_threads.batches():
        contexts = {
            place: _context(dump, place, data, config, cpu)
            for place, data in dump.contexts(shown(tid, place) for tid, place in batch)
        }
        for tid, place in batch:
            taken = shown(tid, place)
            context = contexts[taken]
            note = () if taken == place else (_at_exception(),)
            yield ThreadState(tid, context.image, dump.machine, findings=(*context.findings, *note))


def _context(
    dump: Minidump, place: Location, data: bytes, config: XstateConfig | None, cpu: Cpu | None
) -> Context:
    name = dump.stream.name
    try:
        return read_context(data, dump.machine, config, cpu)
    except AmbiguousLayout as error:
        raise AmbiguousLayout(f"{name} at byte {place.offset}: {error}", error.candidates) from error
    except ImageError as error:
        raise SourceError(
            name, str(error), offset=place.offset + (error.offset or 0), help=error.help
        ) from error
    except LayoutError as error:
        raise SourceError(name, str(error), offset=place.offset, help=error.help) from error


def _at_exception() -> Finding:
    return Finding(
        "SRC013",
        Severity.NOTE,
        "the registers at the exception; the thread list has those at which the dump was written",
        source="MINIDUMP_EXCEPTION_STREAM",
    )
