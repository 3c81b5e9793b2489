"""Recorded XRSTORs, done again by the model: what it refuses, and what every register then is.

Each is one XRSTOR of an image, legal or not, after a known pattern was loaded; some images end at an unmapped page. The
form is told in data/oracles_intel/README.md. ``image_replay`` holds the rules against the same files.
"""

from __future__ import annotations

from model_registers import restored, saved
from register_letters import Source
from replay_report import MANY, Machine, Report, processor_of, replayed
from sequence_operations import enter

from fpstate.arch import Cpu, Layout
from fpstate.engine.model import Behaviour, Processor
from fpstate.errors import ProcessorFault
from linux_signal import SIGNALS
from recorded import Case, OracleFile, build

_GRANTED_AND_USED = 1
_PAGE_SIZE = 4096


def check_file(
    file: OracleFile, machine: Machine, behaviour: Behaviour | None = None, *, most: int = MANY
) -> Report:
    """Replay a file's cases on the model of the processor that they were recorded on."""
    return replayed(file, _Replay(file, processor_of(machine), behaviour).problem, most=most)


class _Replay:
    """A file's machine with the pattern in its registers."""

    def __init__(self, file: OracleFile, cpu: Cpu, behaviour: Behaviour | None) -> None:
        self.processor = Processor.under_linux(cpu, behaviour)
        if file.permission == _GRANTED_AND_USED:
            self.processor.xfd = 0
        self._file, self._templates = file, file.templates()
        self.processor.xrstor(file.pattern())
        self._loaded = self.processor.snapshot()
        self._kept = Source(saved(self.processor), Layout.standard(cpu, self.processor.xcr0))

    def problem(self, case: Case) -> str:
        """Say what the model does otherwise than the processor did; empty where nothing is."""
        processor, answer = self.processor, case["r"]
        image = build(case["p"], self._file.pool, self._file.size, self._templates[case["t"]])[: case["n"]]
        memory = bytes(image) + bytes(case["s"])
        processor.file = self._loaded.copy()
        fault = None
        try:
            with enter(processor, case["o"]) as wide:
                processor.xrstor(memory, case["m"], address=-len(memory) % _PAGE_SIZE, wide=wide)
        except ProcessorFault as raised:
            fault = raised
        if answer.get("f") not in (SIGNALS[fault.vector] if fault else (None,)):
            return f"signal {answer.get('f')}, the model says {fault}"
        return restored(processor, answer, memory, self._kept, refused=fault is not None)
