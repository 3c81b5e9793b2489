"""Recorded XRSTORs, done again by the model: what it refuses, and what every register then is.

Each is one XRSTOR of an image, legal or not, after a known pattern was loaded; some images end at an unmapped page. The
form is told in data/oracles_intel/README.md. ``image_replay`` holds the rules against the same files.
"""

from __future__ import annotations

from register_list import difference, pkru_of, saved
from registers import INITIAL, Source
from replay_report import MANY, Report, replayed
from sequence_operations import enter

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import COMPACTED_BIT, MIN_SIZE
from fpstate.engine.model import Behaviour, Processor
from fpstate.engine.model.fault import NOT_AVAILABLE, PAGE, PROTECTION
from fpstate.errors import ProcessorFault
from recorded import Case, OracleFile, build

_GRANTED_AND_USED = 1
_KEY_0 = 3
_PAGE_SIZE = 4096
_SIGNALS = {PROTECTION: [[11, 128, 13]], PAGE: [[11, 2, 14], [11, 1, 14]], NOT_AVAILABLE: [[4, 1, None]]}


def check_file(file: OracleFile, cpu: Cpu, behaviour: Behaviour | None = None, *, most: int = MANY) -> Report:
    """Replay a file's cases on the model of the processor that they were recorded on."""
    return replayed(file, _Replay(file, cpu, behaviour).problem, most=most)


class _Replay:
    """A file's machine with the pattern in its registers."""

    def __init__(self, file: OracleFile, cpu: Cpu, behaviour: Behaviour | None) -> None:
        self.processor = Processor.under_linux(cpu, behaviour)
        if file.permission == _GRANTED_AND_USED:
            self.processor.xfd = 0
        self._file, self._templates = file, file.templates()
        self._layout = Layout.standard(cpu, self.processor.xcr0)
        self.processor.xrstor(file.pattern())
        self._loaded = self.processor.snapshot()
        self._kept = Source(saved(self.processor), self._layout)

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
        if answer.get("f") not in (_SIGNALS[fault.vector] if fault else [None]):
            return f"signal {answer.get('f')}, the model says {fault}"
        area, (mxcsr, pkru, *listed) = saved(processor), answer["g"]
        if processor.file.mxcsr != mxcsr:
            return f"MXCSR {mxcsr:#x}, the model says {processor.file.mxcsr:#x}"
        own = pkru_of(area, self._layout)
        if own != answer.get("k", pkru) or own & ~_KEY_0 != pkru:
            return f"PKRU {answer.get('k', pkru):#x}, then {pkru:#x}, the model says {own:#x}"
        if not fault and processor.xgetbv(1) != answer["x"]:
            return f"XINUSE {answer['x']:#x}, the model says {processor.xgetbv(1):#x}"
        sources = {"L": Source(memory, self._layout_of(memory)), "K": self._kept, "I": INITIAL}
        return difference(area, self._layout, listed, sources)

    def _layout_of(self, memory: bytes) -> Layout:
        """The layout of an image by its own format; zeros follow it."""
        xcomp_bv = int.from_bytes(memory[520:528], "little")
        if len(memory) >= MIN_SIZE and xcomp_bv & COMPACTED_BIT:
            return Layout.compacted(self.processor.cpu, xcomp_bv & self.processor.xcr0)
        return self._layout
