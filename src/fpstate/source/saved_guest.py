"""Guest states in files as a source: the registers that were saved, as one thread; docs/guest-state.md."""

from __future__ import annotations

from fpstate.arch.cpu import Cpu
from fpstate.source.state_file import decode_state
from fpstate.source.stream import Stream
from fpstate.source.thread import ThreadState


def guest_threads(stream: Stream, *, cpu: Cpu | None = None) -> list[ThreadState]:
    """Return the state of the file's vCPU, named after its program, with what is not whole about it as findings.

    The file has its processor's leaf 0DH; ``cpu`` is not asked. The guest's memory is not kept. Raises SourceError as
    ``decode`` does.
    """
    saved = decode_state(stream)
    state, name = saved.state, saved.checkpoint.program if saved.checkpoint else ""
    return [ThreadState(None, state.image, xcr0=state.xcr0, name=name, findings=tuple(state.findings()))]
